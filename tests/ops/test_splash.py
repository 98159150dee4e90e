"""The TPU kernels, interpreted on the CPU, against float64 by hand; and compiled for real TPUs without having one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.graph_by_hand import CASES, Case, part_block
from vidlang.ops.edges import BlockGraph
from vidlang.ops.splash import splash_dense, splash_sparse


@functools.partial(jax.jit, static_argnames="globals")
def run(
    q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array, graph: BlockGraph, globals: int
) -> tuple[jax.Array, ...]:
    o, pull = jax.vjp(lambda *qkv: splash_sparse(*qkv, graph, globals=globals, interpret=True), q, k, v)
    return o, *pull(do)


def value_and_gradients(case: Case, dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, ...]:
    return run(*case.inputs(dtype), case.graph(), globals=case.globals)


@pytest.mark.parametrize("name", CASES)
def test_sparse_equals_attention_by_hand(name: str) -> None:
    case = CASES[name]
    for what, found, expected in zip("o dq dk dv".split(), value_and_gradients(case), case.by_hand(), strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-6, err_msg=what)


def test_bfloat16_is_close() -> None:
    case = part_block()
    for found, expected in zip(value_and_gradients(case, jnp.bfloat16), case.by_hand(jnp.bfloat16), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.04)


def test_large_logits_stay_finite() -> None:
    case = part_block()
    case.arrays[0] *= 300.0
    for found, expected in zip(value_and_gradients(case), case.by_hand(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_another_graph_needs_no_compilation() -> None:
    case = part_block()
    value_and_gradients(case)
    compiled = run._cache_size()
    case.index = np.array([[2, -1], [0, 1], [-1, 0]], np.int32)
    for found, expected in zip(value_and_gradients(case), case.by_hand(), strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-6)
    assert run._cache_size() == compiled


def test_a_block_that_does_not_exist_is_an_empty_slot() -> None:
    case = Case(0, 40, 16, 20, [[0, 3, 1], [3, 4, 3], [1, 0, 3]])
    found = value_and_gradients(case)
    case.index[case.index > 2] = -1
    for one, other in zip(found, case.by_hand(), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_dense_sees_every_token_and_no_padding() -> None:
    # One block that holds all tokens is dense attention; 130 tokens fill two tiles of 128 in part.
    case = Case(0, 130, 130, 16, [[0]])
    *qkv, do = case.inputs()
    with jax.numpy_rank_promotion("allow"):  # splash attention's own code needs it
        o, pull = jax.vjp(jax.jit(lambda *qkv: splash_dense(*qkv, interpret=True)), *qkv)
        found = (o, *pull(do))
    for one, other in zip(found, case.by_hand(), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_a_request_that_cannot_be_served_says_so() -> None:
    case = Case(1, 20, 16, 16, [[0, 1], [1, -1]])
    q, k, v, _ = case.inputs()
    with pytest.raises(ValueError, match="2 global tokens and a graph of 20 tokens do not make the 21 tokens of q"):
        splash_sparse(q, k, v, case.graph(), globals=2)
    with pytest.raises(ValueError, match="q, k and v of one shape"):
        splash_dense(q, k[:, 1:], v)
    half = [x.astype(jnp.float16) for x in (q, k, v)]
    for attention in (splash_dense, lambda *qkv: splash_sparse(*qkv, case.graph(), globals=1)):
        with pytest.raises(ValueError, match="take bfloat16 or float32; found float16"):
            attention(*half)


# Compiles forward and backward of attention for TPUs and prints the bytes of its temporaries and its kernels.
FOR_TPUS = """
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from vidlang.ops.edges import BlockGraph
from vidlang.ops.splash import splash_dense, splash_sparse

CHIPS = {
    name: SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0])
    for name in ("v5e:2x2", "v5p:2x2x1")
}


def temporaries(case):
    chip, name, frames = case
    tokens = 196 * frames
    blocks = -(-tokens // 56)
    x = jax.ShapeDtypeStruct((8, 1 + tokens, 12, 64), jnp.bfloat16, sharding=CHIPS[chip])
    # Slots of (1, 3, 56) and (1, 5, 56): local and random blocks.
    slots = {"three": 4, "five": 6, "dense": 1}[name]
    index = jax.ShapeDtypeStruct((blocks, slots), jnp.int32, sharding=CHIPS[chip])

    def gradients(q, k, v, do, index):
        graph = BlockGraph(index, tokens=tokens, block=56)
        sparse = lambda *qkv: splash_sparse(*qkv, graph, globals=1)
        return jax.vjp(splash_dense if name == "dense" else sparse, q, k, v)[1](do)

    # Half the compiler's time; and all temporaries lie in main memory, so that they are counted.
    options = {"exec_time_optimization_effort": -1.0}
    compiled = jax.jit(gradients).lower(x, x, x, x, index).compile(compiler_options=options)
    return *case, compiled.memory_analysis().temp_size_in_bytes, compiled.as_text().count('"tpu_custom_call"')


CASES = {
    "v5e:2x2": (("five", 4), ("five", 16), ("five", 64), ("dense", 16), ("dense", 64)),
    "v5p:2x2x1": (("three", 16), ("three", 64), ("dense", 16)),
}
with ThreadPoolExecutor(2) as pool:
    for result in pool.map(temporaries, [(chip, *case) for chip, cases in CASES.items() for case in cases]):
        print("compiled", *result)
"""


@pytest.mark.slow
def test_compiles_for_tpus_in_memory_linear_in_the_tokens(repository: Path, libtpu: None) -> None:
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(repository), *sys.path])
    command = [sys.executable, "-c", FOR_TPUS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("compiled ")]
    assert len(lines) == 8 and all(kernels == "3" for *_, kernels in lines), lines
    sizes = {(chip, name, int(frames)): int(size) for chip, name, frames, size, _ in lines}
    for (chip, name, frames), size in sizes.items():
        # q, k, v, o, their gradients and copies in blocks are 1.5 kB a token each; dense attention fills half of their
        # lanes and keeps a number a row in 128. One row of 12 x 12545 weights in bfloat16 would be 300 kB.
        limit = 50_000 if name == "dense" else 20_000
        assert size / (8 * (1 + 196 * frames)) < limit, (chip, name, frames, size)
        if frames == 64:
            assert size / sizes[chip, name, 16] < 4.2, (chip, name, size)  # four times the tokens
