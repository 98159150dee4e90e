"""The GPU kernels, interpreted on the CPU, against float64 by hand; and that Triton's lowering takes them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.graph_by_hand import CASES, Case, part_block
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.ops.attention import on_local_heads
from vidlang.ops.edges import BlockGraph
from vidlang.ops.kernel_parts import edges_by_key, edges_by_query
from vidlang.ops.pallas_sparse import pallas_attention


@functools.partial(jax.jit, static_argnames="globals")
def run(
    q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array, graph: BlockGraph, globals: int
) -> tuple[jax.Array, ...]:
    o, pull = jax.vjp(lambda *qkv: pallas_attention(*qkv, graph, globals=globals, interpret=True), q, k, v)
    return o, *pull(do)


def value_and_gradients(case: Case, dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, ...]:
    return run(*case.inputs(dtype), case.graph(), globals=case.globals)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_attention_by_hand(name: str) -> None:
    case = CASES[name]
    for what, found, expected in zip("o dq dk dv".split(), value_and_gradients(case), case.by_hand(), strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-6, err_msg=what)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.04), (jnp.float16, 0.006)])
def test_half_precision_is_close(dtype: jnp.dtype, tolerance: float) -> None:
    case = part_block()
    for found, expected in zip(value_and_gradients(case, dtype), case.by_hand(dtype), strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance)


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


def test_a_mesh_changes_nothing() -> None:
    case = Case(1, 20, 16, 16, [[0, 1], [1, -1]])
    *qkv, do = case.inputs()

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, graph: BlockGraph) -> tuple[jax.Array, ...]:
        def kernel(q: jax.Array, k: jax.Array, v: jax.Array, graph: BlockGraph) -> jax.Array:
            return pallas_attention(q, k, v, graph, globals=1, interpret=True)

        return jax.grad(lambda *qkv: (do * on_local_heads(kernel, *qkv, graph)).sum(), argnums=(0, 1, 2))(q, k, v)

    with use_mesh(make_mesh({"data": 2, "tensor": 2, "context": 2})):
        found = jax.jit(gradients)(*qkv, case.graph())
    for one, other in zip(found, case.by_hand()[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_edges_by_key_are_the_edges_by_query_turned() -> None:
    rng = np.random.default_rng(1)
    index = np.stack([rng.permutation(9)[:4] for _ in range(9)]).astype(np.int32)
    index[rng.random(index.shape) < 0.3] = -1
    index[2, 1] = 9  # no such block
    expected = {(i, int(j)) for i, row in enumerate(index) for j in row if 0 <= j < 9}
    starts, keys = (np.asarray(x) for x in edges_by_query(jnp.asarray(index)))
    assert {(i, int(j)) for i in range(9) for j in keys[starts[i] : starts[i + 1]]} == expected
    starts, queries = (np.asarray(x) for x in edges_by_key(jnp.asarray(index)))
    assert {(int(i), j) for j in range(9) for i in queries[starts[j] : starts[j + 1]]} == expected
    assert starts[-1] == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(("block", "head", "globals"), [(56, 64, 1), (16, 80, 0)])
def test_triton_lowers_forward_and_backward(dtype: jnp.dtype, block: int, head: int, globals: int) -> None:
    tokens, slots = 785 - globals, 6
    blocks = -(-tokens // block)
    x = jax.ShapeDtypeStruct((2, 785, 3, head), dtype)
    graph = BlockGraph(jax.ShapeDtypeStruct((blocks, slots), jnp.int32), tokens=tokens, block=block)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, graph: BlockGraph) -> jax.Array:
        return pallas_attention(q, k, v, graph, globals=globals).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, x, x, graph)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kernels = re.findall(r"stablehlo\.custom_call @__gpu\$xla\.gpu\.triton", text)
    assert len(kernels) == 3
    # Nothing is as large as tokens x tokens.
    sizes = [np.prod([int(n) for n in shape.split("x")[:-1]]) for shape in re.findall(r"tensor<((?:\d+x)+)", text)]
    assert max(sizes) == 2 * 785 * 3 * head < 785 * 785


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 21}, "1 global tokens and a graph of 21 tokens do not make the 21 tokens of q"),
        ({"globals": 0}, "0 global tokens and a graph of 20 tokens"),
        ({"block": 5}, r"a row for each of its 4 blocks; found int32 \(2, 2\) for 20 tokens in blocks of 5"),
        ({"index": jnp.zeros((2, 0), jnp.int32)}, r"a slot or more .*; found int32 \(2, 0\)"),
        ({"index": jnp.zeros((2, 2))}, "is int32 with a slot or more in a row for each of its 2 blocks; found float32"),
        ({"k": jnp.ones((2, 21, 2, 8))}, "q, k and v of one shape"),
        ({"v": jnp.ones((2, 21, 2, 16), jnp.bfloat16)}, "one dtype .*; found bfloat16, float32"),
    ],
)
def test_a_request_that_cannot_be_served_says_so(changes: dict, words: str) -> None:
    case = Case(1, 20, 16, 16, [[0, 1], [1, -1]])
    request = dict(zip("qkv", case.inputs(), strict=False)) | {"index": case.graph().index_QK} | changes
    graph = BlockGraph(request["index"], tokens=request.get("tokens", 20), block=request.get("block", 16))
    with pytest.raises(ValueError, match=words):
        pallas_attention(*(request[x] for x in "qkv"), graph, globals=request.get("globals", 1))
