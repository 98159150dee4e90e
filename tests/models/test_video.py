"""The video encoder: what a token is, what masking leaves, how it pools, and which clips it refuses."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vidlang.models.video import Model, Output
from vidlang.nn.layers import LayerNorm
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials

RNG = np.random.default_rng(0)
TRANSFORMER = {"layers": 1, "scan": False, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}
TUBELET, MEAN, STD = (2, 8, 4), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
VIDEO = jnp.asarray(RNG.integers(0, 256, (3, 4, 16, 8, 3)), jnp.uint8)  # 2 x 2 x 2 tokens
KEY = jax.random.key(3)


@functools.cache
def build(pool: str) -> tuple[Model, Any]:
    """A model of this pooling, with parameters that are all away from zero."""
    model = Model(nn.FrozenDict(TRANSFORMER), tubelet=TUBELET, pool=pool, mean=MEAN, std=STD)
    shapes = nn.unbox(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO))
    params = jax.tree.map(lambda leaf: (0.3 * RNG.normal(size=leaf.shape)).astype(np.float32), shapes)
    return model, params


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(model: Model, params: Any, video_BTHWC: jax.Array, dials: Dials = OFF) -> Output:
    return model.apply(params, video_BTHWC, train=True, dials=dials, rngs={"mask": KEY} if dials.mask else None)


def by_convolution(model: Model, params: Any, kept_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The encoder put together otherwise: convolution, positions looked up, chosen tokens, cls in front, stack."""
    p = jax.tree.map(np.asarray, params["params"])
    pixels = (np.asarray(VIDEO, np.float64) / 255 - MEAN) / STD
    grid = jax.lax.conv_general_dilated(
        jnp.asarray(pixels, jnp.float32),
        p["patch"]["kernel"],
        TUBELET,
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    x = np.asarray(grid) + p["patch"]["bias"] + p["temporal"][None, :, None, None]
    x = (x + np.asarray(p["spatial"]).reshape(2, 2, -1)[None, None]).reshape(3, 8, -1)
    x = np.stack([row[kept] for row, kept in zip(x, kept_BM, strict=True)])
    if model.pool == "cls":
        x = np.concatenate([np.tile(p["cls"], (3, 1, 1)), x], axis=1)
    spec = TransformerSpec(**TRANSFORMER)
    y = jax.jit(Stack(spec).apply)({"params": p["stack"]}, jnp.asarray(x, jnp.float32)).x_BMD
    y = np.asarray(LayerNorm(16, jnp.float32).apply({"params": p["norm"]}, y))
    return (y[:, 1:], y[:, 0]) if model.pool == "cls" else (y, y.mean(1))


@pytest.mark.parametrize(("pool", "mask"), [("mean", 0.0), ("mean", 0.6), ("cls", 0.6)])
def test_equals_the_encoder_put_together_otherwise(pool: str, mask: float) -> None:
    model, params = build(pool)
    output = encode(model, params, VIDEO, Dials(mask))
    assert output.kept_BM.shape == (3, 8 - round(8 * mask)) and output.pooled_BD.dtype == jnp.float32
    tokens, pooled = by_convolution(model, params, np.asarray(output.kept_BM))
    np.testing.assert_allclose(output.tokens_BMD, tokens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.pooled_BD, pooled, rtol=1e-4, atol=1e-4)


def test_mask_of_nothing_is_bit_equal_and_draws_nothing() -> None:
    model, params = build("cls")

    def jaxpr(**options: Any) -> str:
        return str(jax.make_jaxpr(lambda params: model.apply(params, VIDEO, **options))(params))

    assert jaxpr(train=False) == jaxpr(train=True, dials=Dials(mask=0.0))
    plain, almost = encode(model, params, VIDEO), encode(model, params, VIDEO, Dials(mask=0.05))  # rounds to no token
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(almost), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(almost.kept_BM, np.tile(np.arange(8), (3, 1)))


def test_which_tokens_remain_is_the_keys_choice() -> None:
    model, params = build("cls")

    @jax.jit
    def kept(key: jax.Array, video_BTHWC: jax.Array) -> jax.Array:
        return model.apply(params, video_BTHWC, train=True, dials=Dials(0.5), rngs={"mask": key}).kept_BM

    draws = [np.asarray(kept(jax.random.key(seed), VIDEO)) for seed in range(4)]
    np.testing.assert_array_equal(draws[0], kept(jax.random.key(0), 255 - VIDEO))
    assert len({draw.tobytes() for draw in draws}) > 1


def test_masking_needs_a_key() -> None:
    model, params = build("cls")
    with pytest.raises(ValueError, match=r"mask is 0.5.*rngs=\{'mask': key\}"):
        model.apply(params, VIDEO, train=True, dials=Dials(0.5))


def test_every_parameter_learns() -> None:
    model, params = build("cls")

    def loss(params: Any) -> jax.Array:
        return jnp.sin(model.apply(params, VIDEO, train=True).pooled_BD).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 1e-6 or "['key']['bias']" in name), name


def shape_of(video: jax.ShapeDtypeStruct | jax.Array, **attributes: Any) -> Any:
    model = Model(**({"transformer": TRANSFORMER, "tubelet": TUBELET} | attributes))
    return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), video)


def clip(*size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)


def test_house_defaults_are_tubelets_of_2_16_16_in_bfloat16() -> None:
    config = ConfigDict({"transformer": {"layers": 12, "width": 768, "heads": 12, "mlp": 3072}})
    model = Model(**config.to_dict())
    output, variables = jax.eval_shape(
        functools.partial(model.init_with_output, train=True), jax.random.key(0), clip(16, 224, 224)
    )
    assert output.tokens_BMD.shape == (2, 1568, 768) and output.tokens_BMD.dtype == jnp.bfloat16
    assert output.pooled_BD.dtype == jnp.float32
    assert variables["params"]["patch"]["kernel"].value.shape == (2, 16, 16, 3, 768)
    assert variables["params"]["stack"]["layers"]["mlp_in"]["kernel"].value.shape == (12, 768, 3072)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("size", "words"), [((5, 16, 8), "frames 5"), ((4, 12, 8), "height 12"), ((4, 16, 10), "width 10")]
)
def test_clips_that_do_not_divide_are_refused(size: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shape_of(clip(*size))


def test_clips_of_another_size_than_the_parameters_are_refused() -> None:
    model, params = build("cls")
    for size, words in (((8, 16, 8), "8 frames needs 4 temporal"), ((4, 32, 8), "32x8 pixels needs 8 spatial")):
        with pytest.raises(ValueError, match=words):
            model.apply(params, jnp.zeros((3, *size, 3), jnp.uint8), train=False)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"transformer": TRANSFORMER | {"widht": 8}}, "unknown key 'widht' .did you mean 'width'"),
        ({"transformer": {"layers": 1, "heads": 2, "mlp": 8}}, "lacks 'width'"),
        ({"transformer": TRANSFORMER | {"causal": True}}, "causal"),
        ({"pool": "max"}, "pool is 'max'; it is one of mean, cls"),
        ({"tubelet": (2, 8)}, "tubelet is"),
    ],
)
def test_bad_attributes_are_named(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shape_of(clip(4, 16, 8), **attributes)


def test_what_is_no_video_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, T, H, W, C\]; found shape \(16, 8, 3\)"):
        shape_of(jax.ShapeDtypeStruct((16, 8, 3), jnp.uint8))
    with pytest.raises(ValueError, match="int32; expected uint8"):
        shape_of(jax.ShapeDtypeStruct((2, 4, 16, 8, 3), jnp.int32))
