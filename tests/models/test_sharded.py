"""On eight devices, however the mesh is cut, the dual encoder is the function it is on one."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.models.dual_encoder import Model, Output
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Block, Stack
from vidlang.ops.dials import Dials

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 64, "dtype": "float32"}
MODEL = Model(
    video={"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
    text={"vocab": 16, "max_length": 8, "transformer": TRANSFORMER, "pool": "mean"},
    embed=16,
    temperature={"init": 0.07, "max_scale": 100.0, "learnable": True},
)
RNG = np.random.default_rng(0)
BATCH = {
    "video_BTHWC": RNG.integers(0, 256, (8, 4, 16, 16, 3)).astype(np.uint8),
    "text_BL": RNG.integers(0, 16, (8, 8)).astype(np.int32),
}
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


def forward(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> Output:
    inputs = [batch[name] for name in MODEL.inputs]
    return MODEL.apply(params, *inputs, train=True, dials=Dials(0.5), rngs={"mask": key})


@pytest.fixture(scope="module")
def boxed() -> Any:
    init = functools.partial(MODEL.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *(BATCH[name] for name in MODEL.inputs))


@pytest.fixture(scope="module")
def params(boxed: Any) -> Any:
    return jax.tree.map(lambda leaf: (0.2 * RNG.normal(size=leaf.shape)).astype(np.float32), nn.unbox(boxed))


@pytest.fixture(scope="module")
def alone(params: Any) -> Output:
    return jax.jit(forward)(params, BATCH, jax.random.key(1))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_forward_equals_one_device(sizes: dict[str, int], boxed: Any, params: Any, alone: Output) -> None:
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        placed = jax.device_put(params, tree_shardings(boxed, mesh))
        found = jax.jit(forward)(placed, put_batch(BATCH, mesh), jax.random.key(1))
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    rows = found.video_BE.sharding.shard_shape(found.video_BE.shape)[0]
    assert rows * sizes.get("data", 1) * sizes.get("fsdp", 1) == 8, "embeddings left their rows' devices"
    # The bulk of the parameters is cut; norms, biases and the temperature may stay whole.
    cut = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    first = mesh.devices.flat[0]
    for name, leaf in flatten_paths(placed).items():
        held = sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.device == first)
        if name.endswith(("query/kernel", "out/kernel", "mlp_in/kernel", "mlp_out/kernel", "words/table")):
            assert held * cut == leaf.nbytes, f"{name}: {held} of {leaf.nbytes} bytes on each device"


def test_parameters_are_born_sharded() -> None:
    """Initialising under a mesh works, and straight into shards: no device ever holds a whole kernel."""
    mesh, x = make_mesh({"fsdp": 4, "tensor": 2}), jnp.zeros((8, 6, 32))
    stack = Stack(TransformerSpec(**TRANSFORMER))
    with use_mesh(mesh):
        shardings = tree_shardings(jax.eval_shape(stack.init, jax.random.key(0), x), mesh)
        init = jax.jit(lambda key: nn.unbox(stack.init(key, x)), out_shardings=shardings)
        compiled = init.lower(jax.random.key(0)).compile()
        kernel = compiled(jax.random.key(0))["params"]["layers"]["mlp_in"]["kernel"]
    assert kernel.sharding.shard_shape((2, 32, 64)) == (2, 8, 32)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (32 + 64)), rtol=0.05)
    assert "f32[2,32,64]" not in compiled.as_text(), "a whole kernel exists before it is cut"


def test_constraints_take_effect_inside_a_block() -> None:
    """With whole parameters and rows only cut by the batch, a block still computes heads and channels in slices."""
    spec, x = TransformerSpec(**TRANSFORMER), jnp.zeros((8, 6, 32))
    shapes = nn.unbox(jax.eval_shape(Block(spec).init, jax.random.key(0), x))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    def compiled(sizes: dict[str, int]) -> str:
        with use_mesh(make_mesh(sizes)):
            return jax.jit(Block(spec).apply).lower(params, x).compile().as_text()

    def activations(text: str, last: int) -> bool:
        """Is there any array of tokens (6 a row, rows perhaps merged into them) with this many channels?"""
        return re.search(rf"f32\[(\d+,6|6|24),{last}\]", text) is not None

    alone, cut = compiled({"data": 8}), compiled({"data": 2, "tensor": 4})
    assert activations(alone, 64) and not activations(alone, 16)
    assert activations(cut, 16) and not activations(cut, 64), "the hidden layer is not cut into 4 x 16 channels"
    assert "all-reduce" in cut and "all-reduce" not in alone, "slices are summed over their devices"
