"""SigLIP's pool is what its formula says, at every width that the tokens may have."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.models.video import Model
from vidlang.nn.map_pool import MapPool
from vidlang.nn.slicing import slice_params
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import Dials

WIDTH, HEADS, MLP = 16, 4, 24
SPEC = {"layers": 2, "width": WIDTH, "heads": HEADS, "mlp": MLP, "dtype": "float32", "activation": "relu"}
SPEC |= {"epsilon": 1e-2}


def drawn(init: Any, *inputs: Any, **options: Any) -> Any:
    rng = np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(lambda: init(jax.random.key(0), *inputs, **options)))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def linear(x: np.ndarray, p: Any, into: slice | list[int], out: slice | list[int]) -> np.ndarray:
    return x @ p["kernel"][into][:, out] + p["bias"][out]


def expected(x_BND: np.ndarray, params: Any, groups: int) -> np.ndarray:
    """The formula in numpy, of the parts of the parameters that this width has."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    width, size = x_BND.shape[-1], WIDTH // HEADS
    heads = [n for n in range(HEADS) if n % (HEADS // groups) < width * HEADS // WIDTH // groups]
    units = [n for n in range(MLP) if n % (MLP // groups) < width * MLP // WIDTH // groups]
    y_BD = np.broadcast_to(p["out"]["bias"][:width], x_BND[:, 0].shape).copy()
    for head in heads:
        q, k, v = (
            x @ p[name]["kernel"][:width, head] + p[name]["bias"][head]
            for name, x in (("query", p["latent"][:width]), ("key", x_BND), ("value", x_BND))
        )
        weights_BN = np.exp(k @ q / math.sqrt(size))
        weights_BN /= weights_BN.sum(1, keepdims=True)
        y_BD += np.einsum("BN,BNK->BK", weights_BN, v) @ p["out"]["kernel"][head][:, :width]
    z_BD = y_BD - y_BD.mean(-1, keepdims=True)
    z_BD = z_BD / np.sqrt((z_BD**2).mean(-1, keepdims=True) + SPEC["epsilon"])
    z_BD = z_BD * p["norm"]["scale"][:width] + p["norm"]["bias"][:width]
    h_BF = np.maximum(linear(z_BD, p["mlp_in"], slice(width), units), 0)
    return y_BD + linear(h_BF, p["mlp_out"], units, slice(width))


@pytest.mark.parametrize("groups", [1, 2])
def test_is_attention_by_a_query_and_an_mlp_at_every_width(groups: int) -> None:
    pool = MapPool(TransformerSpec(**SPEC, groups=groups))
    x_BND = np.random.default_rng(1).normal(size=(2, 5, WIDTH))
    params = drawn(pool.init, jnp.asarray(x_BND, jnp.float32))
    for width in (WIDTH, WIDTH // 2):
        part, pad = x_BND[..., :width], WIDTH - width
        y_BD = expected(part, params, groups)
        found = pool.apply({"params": params}, jnp.asarray(part, jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, y_BD, rtol=1e-4, atol=1e-4)
        padded = jnp.asarray(np.pad(part, [(0, 0), (0, 0), (0, pad)]), jnp.float32)
        found = pool.apply({"params": params}, padded, valid=jnp.int32(width))
        np.testing.assert_allclose(found, np.pad(y_BD, [(0, 0), (0, pad)]), rtol=1e-4, atol=1e-4)


VIDEO = jnp.asarray(np.random.default_rng(2).integers(0, 256, (2, 2, 8, 8, 3)), jnp.uint8)


@pytest.mark.parametrize("cls", [False, True])
def test_a_tower_pools_its_normalised_tokens_and_never_cls(cls: bool) -> None:
    model = Model(transformer=SPEC, tubelet=(1, 4, 4), pool="map", cls=cls)
    params = drawn(model.init, VIDEO, train=False)
    output = jax.jit(lambda p: model.apply({"params": p}, VIDEO, train=False))(params)
    y_BD = expected(np.asarray(output.tokens_BMD, np.float64), params["map_pool"], 1)
    np.testing.assert_allclose(output.pooled_BD, y_BD, rtol=1e-3, atol=1e-3)


def test_a_tower_cut_at_a_width_is_the_tower_at_that_width() -> None:
    model = Model(transformer=SPEC, tubelet=(1, 4, 4), pool="map")
    params = drawn(model.init, VIDEO, train=False)
    small, part = slice_params(model, params, (8, 8), VIDEO)
    assert part["map_pool"]["mlp_in"]["kernel"].shape == (8, 12)
    alone = jax.jit(lambda p: small.apply({"params": p}, VIDEO, train=False))(part)
    narrow = functools.partial(model.apply, train=False, dials=Dials(widths=(8, 8)))
    inside = jax.jit(lambda p: narrow({"params": p}, VIDEO))(params)
    np.testing.assert_allclose(alone.pooled_BD, inside.pooled_BD, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(part["map_pool"]["latent"], params["map_pool"]["latent"][:8])


def test_each_frame_is_pooled_by_itself_in_the_layout_of_frames() -> None:
    model = Model(transformer={**SPEC, "layout": "frames"}, tubelet=(1, 4, 4), pool="map")
    params = drawn(model.init, VIDEO, train=False)
    run = jax.jit(lambda p, video: model.apply({"params": p}, video, train=False).pooled_BD)
    apart = [run(params, VIDEO[:, t : t + 1]) for t in range(2)]
    np.testing.assert_allclose(run(params, VIDEO), sum(apart) / 2, rtol=1e-5, atol=1e-5)


def test_it_is_no_mean() -> None:
    model = Model(transformer=SPEC, tubelet=(1, 4, 4), pool="map", norm_pooled=True)
    with pytest.raises(ValueError, match="norm_pooled is of a mean, and video.pool is 'map'"):
        model.init(jax.random.key(0), VIDEO, train=False)
