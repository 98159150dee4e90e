"""Every dial under every mesh: eight devices compute what one does, and cutting to a width moves nothing of its own."""

import collections
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import batch_sharding, make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models.video import Model
from vidlang.nn.layouts import LAYOUTS
from vidlang.ops.dials import OFF, Dials, streams

TRANSFORMER = {"layers": 2, "width": 32, "heads": 8, "mlp": 64, "dtype": "float32", "groups": 2}
MODEL = Model(TRANSFORMER, tubelet=(2, 8, 8), pool="cls")
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (8, 4, 32, 32, 3)).astype(np.uint8)  # 2 x 4 x 4 = 32 tokens
DIALS = {
    "width": Dials(widths=(16, 8)),
    "drawn width": Dials(widths={"name": "dec", "shares": (1.0, 0.5, 0.25)}),
    "edges": Dials(edges={"local": 1, "random": 1, "block": 8}),
    "keep": Dials(keep={0: 0.5}),
    "all": Dials(mask=0.25, widths=(32, 16), edges={"local": 1, "random": 1, "block": 4}, keep={0: 0.5}),
}
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@functools.cache
def boxed() -> Any:
    return jax.eval_shape(functools.partial(MODEL.init, train=False), jax.random.key(0), VIDEO)


@functools.cache
def params() -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), nn.unbox(boxed()))


def loss_of(dials: Dials) -> Any:
    def loss(p: Any, batch: Any) -> jax.Array:
        output = MODEL.apply(p, batch["video"], train=True, dials=dials, rngs=streams(jax.random.key(2)))
        return jnp.sin(output.pooled_BD).sum() + jnp.cos(output.tokens_BMD).mean()

    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def alone(name: str) -> Any:
    return jax.device_get(loss_of(DIALS[name])(params(), {"video": VIDEO}))


CASES = [*((name, MESHES[-1]) for name in DIALS), *(("all", sizes) for sizes in MESHES[:-1])]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_eight_devices_compute_what_one_does(name: str, sizes: dict[str, int]) -> None:
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        placed = jax.device_put(params(), tree_shardings(boxed(), mesh))
        found = jax.device_get(loss_of(DIALS[name])(placed, put_batch({"video": VIDEO}, mesh)))
    for one, other in zip(jax.tree.leaves(alone(name)), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "joint"])
def test_eight_devices_compute_every_layout(layout: str) -> None:
    model = Model({**TRANSFORMER, "layout": layout}, tubelet=(1 if layout == "frames" else 2, 8, 8), pool="cls")
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO)
    rng = np.random.default_rng(1)
    values = jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), nn.unbox(shapes))

    @jax.jit
    @jax.value_and_grad
    def loss(p: Any, video: Any) -> jax.Array:
        output: Any = model.apply(p, video, train=True, rngs=streams(jax.random.key(2)))
        return jnp.sin(output.pooled_BD).sum() + jnp.cos(output.tokens_BMD).mean()

    expected = jax.device_get(loss(values, VIDEO))
    mesh = make_mesh(MESHES[-1])
    with use_mesh(mesh):
        placed = jax.device_put(values, tree_shardings(shapes, mesh))
        found = jax.device_get(loss(placed, put_batch({"video": VIDEO}, mesh)["video"]))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["width", "edges"])
def test_tokens_may_lie_on_several_devices(name: str) -> None:
    """Without a cls token, 32 tokens divide over eight devices."""
    model = Model(TRANSFORMER, tubelet=(2, 8, 8), pool="mean")
    p = {"params": {key: leaf for key, leaf in params()["params"].items() if key != "cls"}}

    def run(p: Any, video: Any) -> jax.Array:
        output = model.apply(p, video, train=True, dials=DIALS[name], rngs=streams(jax.random.key(2)))
        return output.tokens_BMD

    expected = jax.jit(run)(p, VIDEO)
    mesh = make_mesh({"context": 4, "tensor": 2})
    with use_mesh(mesh):
        found = jax.jit(run)(p, put_batch({"video": VIDEO}, mesh)["video"])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def collectives(dials: Dials, sizes: dict[str, int]) -> collections.Counter:
    """How many of each kind the compiled step has; a scanned layer counts once."""
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        shardings = tree_shardings(boxed(), mesh)
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding), params(), shardings
        )
        video = jax.ShapeDtypeStruct(VIDEO.shape, jnp.uint8, sharding=batch_sharding(mesh))
        text = loss_of(dials).lower(shapes, {"video": video}).compile().as_text()
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return collections.Counter(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", text))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES[1:], ids=str)
def test_a_width_adds_no_collective(sizes: dict[str, int]) -> None:
    """Of a stack that is one loop at D and at D/2: what is cut lies where it is used."""
    whole, half = collectives(OFF, sizes), collectives(Dials(widths=(16, 16)), sizes)
    assert whole and not half - whole, (whole, half)
