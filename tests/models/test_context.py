"""A video encoder whose tokens lie on several devices is the function it is on one, under every dial."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import batch_sharding, compiling_for, make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models.video import Model
from vidlang.ops.dials import Dials, streams

# A cls token and 32 others, which divide over no mesh here; half of them, and less, after the dials.
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3)).astype(np.uint8)
EDGES = {"local": 1, "random": 1, "block": 4}
DIALS = {
    "off": Dials(),
    "mask": Dials(mask=0.3),
    "edges": Dials(edges=EDGES),
    "keep": Dials(keep={0: 0.7}),
    "drawn width": Dials(widths={"name": "dec", "shares": (1.0, 0.5)}),
    "all": Dials(mask=0.25, widths=(32, 16), edges=EDGES, keep={0: 0.5}),
}
MESHES = [{"data": 2, "context": 4}, {"fsdp": 2, "tensor": 2, "context": 2}]


def encoder(relative: bool, **changes: Any) -> Model:
    transformer = {"layers": 2, "width": 32, "heads": 4, "mlp": 64, "dtype": "float32", "groups": 2}
    return Model({**transformer, "relative_positions": relative, **changes}, tubelet=(2, 8, 8), pool="cls")


@functools.cache
def prepared(relative: bool) -> tuple[Any, Any]:
    """(parameters in their boxes as shapes, their values)."""
    boxed = jax.eval_shape(functools.partial(encoder(relative).init, train=False), jax.random.key(0), VIDEO)
    rng = np.random.default_rng(1)
    return boxed, jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), nn.unbox(boxed))


def step_of(model: Model, dials: Dials) -> Any:
    """(loss, output), gradients."""

    def loss(params: Any, video: jax.Array) -> Any:
        output: Any = model.apply(params, video, train=True, dials=dials, rngs=streams(jax.random.key(2)))
        return jnp.sin(output.pooled_BD).sum() + jnp.cos(output.tokens_BMD).mean(), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def alone(name: str, relative: bool) -> Any:
    return jax.device_get(step_of(encoder(relative), DIALS[name])(prepared(relative)[1], VIDEO))


FAST = [("all", True, MESHES[0])]
SLOW = [(name, relative, sizes) for name in DIALS for relative in (False, True) for sizes in MESHES]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW if case not in FAST)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "relative", "sizes"), CASES, ids=str)
def test_tokens_on_several_devices_give_what_one_does(name: str, relative: bool, sizes: dict[str, int]) -> None:
    mesh, (boxed, params) = make_mesh(sizes), prepared(relative)
    with use_mesh(mesh):
        placed = jax.device_put(params, tree_shardings(boxed, mesh))
        step = step_of(encoder(relative), DIALS[name])
        found, found_grads = jax.device_get(step(placed, put_batch({"video": VIDEO}, mesh)["video"]))
    expected, expected_grads = alone(name, relative)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    for one, other in zip(jax.tree.leaves(found_grads), jax.tree.leaves(expected_grads), strict=True):
        # Biases of keys have no gradient but rounding.
        np.testing.assert_allclose(one, other, atol=1e-4 * (np.abs(other).max() + 1e-3 * largest))


LONG = {"dense": Dials(), "edges": Dials(edges={"local": 1, "random": 2, "block": 16})}


@pytest.mark.slow
@pytest.mark.parametrize("dials", LONG.values(), ids=LONG)
def test_memory_of_a_device_falls_with_the_axis(dials: Dials) -> None:
    """Of the compiled gradient step of a clip of 512 tokens, with inputs and parameters left out."""
    video = jax.ShapeDtypeStruct((2, 32, 64, 32, 3), jnp.uint8)

    def temporaries(context: int, attention: str = "auto") -> int:
        model = encoder(False, remat="full", attention=attention)
        boxed = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), video)
        mesh = make_mesh({"data": 2, "context": context}, jax.devices()[: 2 * context])
        with use_mesh(mesh):
            shapes = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                nn.unbox(boxed),
                tree_shardings(boxed, mesh),
            )
            given = jax.ShapeDtypeStruct(video.shape, video.dtype, sharding=batch_sharding(mesh))
            compiled = step_of(model, dials).lower(shapes, given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, two, four = (temporaries(context) for context in (1, 2, 4))
    print(f"temporaries of a device at context 1, 2, 4: {one:,} {two:,} {four:,} bytes")
    assert two < 0.7 * one and four < 0.7 * two
    if dials.edges is None:
        assert four < 0.5 * temporaries(4, "fused"), "a device holds its queries' logits of all keys"


@pytest.mark.parametrize("dials", LONG.values(), ids=LONG)
def test_no_kernel_repeats_a_whole_clip_on_every_device(dials: Dials) -> None:
    """On a TPU, "auto" takes kernels that work on whole clips; not where devices share one."""
    model, video = encoder(False), jax.ShapeDtypeStruct((2, 32, 64, 32, 3), jnp.uint8)
    shapes = nn.unbox(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), video))

    def has_kernel(**sizes: int) -> bool:
        with compiling_for("tpu"), use_mesh(make_mesh(sizes)):
            program = jax.make_jaxpr(lambda p, v: step_of(model, dials)(p, v)[0][0])(shapes, video)
        return "pallas_call" in str(program)

    assert has_kernel(data=2, tensor=4) and not has_kernel(data=2, context=4)
