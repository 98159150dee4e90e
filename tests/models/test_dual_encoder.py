"""The dual encoder: unit float32 embeddings, a bounded scale, and each tower alone giving what both give."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vidlang.core.config import load_module, to_dict
from vidlang.models.dual_encoder import Model, Output, unit
from vidlang.nn.temperature import clip
from vidlang.ops.dials import Dials

TRANSFORMER = {"layers": 1, "scan": False, "width": 16, "heads": 2, "mlp": 32, "dtype": "bfloat16"}
CONFIG: dict[str, Any] = {
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
    "text": {"vocab": 12, "max_length": 8, "transformer": TRANSFORMER | {"width": 8}, "pool": "eos"},
    "embed": 6,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}
RNG = np.random.default_rng(0)
VIDEO = jnp.asarray(RNG.integers(0, 256, (3, 4, 16, 16, 3)), jnp.uint8)
TEXT = jnp.array([[2, 5, 7, 9, 3, 0], [2, 8, 3, 0, 0, 0], [2, 5, 6, 4, 9, 3]])


def make(**changes: Any) -> Model:
    return Model(**to_dict(ConfigDict(CONFIG | changes)))


def shapes(model: Model) -> Any:
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO, TEXT)


@pytest.fixture(scope="module")
def params() -> Any:
    draw = jax.tree.map(lambda leaf: jnp.asarray(0.3 * RNG.normal(size=leaf.shape), jnp.float32), shapes(make()))
    return nn.unbox(draw)


@pytest.fixture(scope="module")
def outputs(params: Any) -> dict[str, Any]:
    """Everything the model gives, from one compilation."""

    @jax.jit
    def run(params: Any, video: jax.Array, text: jax.Array) -> dict[str, Any]:
        apply, key = functools.partial(make().apply, params), jax.random.key(0)
        return {
            "both": apply(video, text, train=True),
            "masked": apply(video, text, train=True, dials=Dials(0.5), rngs={"mask": key}),
            "embed_video": apply(video, method="embed_video"),
            "embed_text": apply(text, method="embed_text"),
        }

    return run(params, VIDEO, TEXT)


@pytest.fixture(scope="module")
def output(outputs: dict[str, Any]) -> Output:
    return outputs["both"]


def test_is_found_by_name_and_names_its_inputs() -> None:
    assert load_module("models", "dual_encoder").Model is Model
    assert Model.inputs == ("video_BTHWC", "text_BL")
    assert load_module("models", "video").Model.inputs == ("video_BTHWC",)
    assert load_module("models", "text").Model.inputs == ("text_BL",)


def test_embeddings_are_float32_of_length_one(output: Output) -> None:
    for x_BE in (output.video_BE, output.text_BE):
        assert x_BE.shape == (3, 6) and x_BE.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(x_BE, axis=-1), 1, rtol=1e-6)
        assert np.abs(x_BE[0] - x_BE[1]).max() > 1e-3


def test_each_tower_alone_gives_the_same(outputs: dict[str, Any], output: Output) -> None:
    np.testing.assert_allclose(outputs["embed_video"], output.video_BE, atol=1e-5)
    np.testing.assert_allclose(outputs["embed_text"], output.text_BE, atol=1e-5)


def test_dials_reach_the_video_only(outputs: dict[str, Any], output: Output) -> None:
    assert np.abs(outputs["masked"].video_BE - output.video_BE).max() > 1e-3
    np.testing.assert_allclose(outputs["masked"].text_BE, output.text_BE, atol=1e-5)


def test_scale_starts_at_the_inverse_temperature() -> None:
    init = jax.jit(lambda key: make().init(key, VIDEO, TEXT, train=False)["params"]["log_scale"])
    log_scale = init(jax.random.key(0))
    np.testing.assert_allclose(np.exp(log_scale), 1 / 0.07, rtol=1e-6)


def scale_of(log_scale: float, params: Any, sign: float = 1.0) -> tuple[float, float]:
    """The model's scale, and what the parameter's gradient is when the loss is `sign` times the scale."""

    def loss(log_scale: jax.Array) -> jax.Array:
        moved = {"params": params["params"] | {"log_scale": log_scale}}
        return sign * make().apply(moved, VIDEO, TEXT, train=True).scale

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.float32(log_scale))
    return float(value) * sign, float(gradient)


def test_scale_never_exceeds_its_bound_and_comes_back_from_it(params: Any) -> None:
    assert scale_of(1.0, params) == pytest.approx((math.e, math.e))
    for above in (math.log(100.0) + 1e-4, 7.0):
        assert scale_of(above, params) == pytest.approx((100.0, 100.0)), "descent lowers it: the gradient passes"
        assert scale_of(above, params, sign=-1.0) == pytest.approx((100.0, 0.0)), "descent would raise it: none passes"


def test_clip_is_plain_between_the_bounds_and_comes_back_from_either() -> None:
    def gradient(x: float, sign: float) -> float:
        return float(jax.grad(lambda x: sign * clip(x, -1.0, 2.0))(x))

    for sign in (1.0, -1.0):
        assert gradient(1.5, sign) == gradient(-0.5, sign) == sign
    for beyond, inward in ((2.0, 1.0), (5.0, 1.0), (-1.0, -1.0), (-5.0, -1.0)):
        assert (gradient(beyond, inward), gradient(beyond, -inward)) == (inward, 0.0), beyond


def test_scale_may_have_a_lower_bound(params: Any) -> None:
    """A temperature in [0.001, 0.5]."""
    temperature = CONFIG["temperature"] | {"max_scale": 1000.0, "min_scale": 2.0}
    for log_scale, scale in ((0.1, 2.0), (1.0, math.e), (9.0, 1000.0)):
        moved = {"params": {**params["params"], "log_scale": jnp.float32(log_scale)}}
        assert float(make(temperature=temperature).bind(moved).scale) == pytest.approx(scale, rel=1e-5)


def test_logits_have_a_bias_where_the_temperature_has_one(params: Any, output: Output) -> None:
    model = make(temperature=CONFIG["temperature"] | {"bias": -10.0})
    assert output.bias is None
    assert set(shapes(model)["params"]) - set(shapes(make())["params"]) == {"bias"}
    fresh = jax.jit(lambda key: model.init(key, VIDEO, TEXT, train=False)["params"]["bias"])(jax.random.key(0))
    assert fresh.shape == () and fresh.dtype == jnp.float32 and float(fresh) == -10.0
    found = jax.eval_shape(
        functools.partial(model.apply, train=True), {"params": {**params["params"], "bias": fresh}}, VIDEO, TEXT
    )
    assert found.bias.shape == () and found.bias.dtype == jnp.float32


def test_projections_are_what_their_sections_say(params: Any) -> None:
    """EgoVLP: both have a bias, and the text passes a ReLU first."""
    model = make(video_projection={"bias": True}, text_projection={"bias": True, "activation": "relu"})
    changed = dict(params["params"])
    for name in ("video_projection", "text_projection"):
        changed[name] = {"kernel": changed[name]["kernel"], "bias": jnp.asarray(RNG.normal(size=6), jnp.float32)}
    wanted = nn.unbox(shapes(model)["params"])
    assert jax.tree.map(jnp.shape, wanted) == jax.tree.map(jnp.shape, changed)

    def towers(model: Model) -> tuple[jax.Array, ...]:
        found = model.video_encoder(VIDEO, train=False).pooled_BD, model.text_encoder(TEXT, train=False).pooled_BD
        return (*found, model.embed_video(VIDEO), model.embed_text(TEXT))

    video_BD, text_BD, *embeddings = jax.jit(lambda p: model.apply(p, method=towers))({"params": changed})
    assert (np.asarray(text_BD) < 0).any()
    rows = ((video_BD, "video_projection"), (np.maximum(text_BD, 0), "text_projection"))
    for (x, name), found in zip(rows, embeddings, strict=True):
        expected = np.asarray(x, np.float64) @ np.asarray(changed[name]["kernel"]) + np.asarray(changed[name]["bias"])
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-4)


def test_a_tower_as_wide_as_the_joint_space_may_have_no_projection(params: Any) -> None:
    width = CONFIG["video"]["transformer"]["width"]
    model = make(video_projection={"identity": True}, embed=width)
    wanted = nn.unbox(shapes(model)["params"])
    assert "video_projection" not in wanted and wanted["text_projection"]["kernel"].shape[-1] == width
    kept = {name: leaf for name, leaf in params["params"].items() if not name.endswith("_projection")}
    kept |= {"text_projection": {"kernel": jnp.ones(wanted["text_projection"]["kernel"].shape)}}

    def towers(model: Model) -> tuple[jax.Array, jax.Array]:
        return model.video_encoder(VIDEO, train=False).pooled_BD, model.embed_video(VIDEO)

    pooled_BD, found = jax.jit(lambda p: model.apply(p, method=towers))({"params": kept})
    np.testing.assert_allclose(found, unit(pooled_BD), atol=1e-6)
    narrow = functools.partial(model.apply, method="embed_video", dials=Dials(widths=(width // 2,)))
    with pytest.raises(ValueError, match=f"takes {width} channels, and the dial widths leaves {width // 2}"):
        jax.eval_shape(narrow, {"params": kept}, VIDEO)


def test_fixed_temperature_is_no_parameter() -> None:
    model = make(temperature={"init": 0.05, "max_scale": 100.0, "learnable": False})
    assert "log_scale" not in shapes(model)["params"]
    bound = model.bind({})
    assert float(bound.scale) == pytest.approx(20.0)


def test_zero_rows_have_no_direction_and_finite_gradients() -> None:
    rows = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit(rows), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(rows)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video": CONFIG["video"] | {"tublet": (2, 8, 8)}}, "model.video has an unknown key 'tublet'"),
        ({"text": {"vocab": 12}}, "model.text lacks 'max_length'"),
        ({"temperature": {"init": 0.07}}, "model.temperature lacks 'max_scale', 'learnable'"),
        ({"temperature": CONFIG["temperature"] | {"init": 0.001}}, "temperature.init is 0.001 and max_scale 100"),
        ({"temperature": CONFIG["temperature"] | {"min_scale": 15.0}}, r"must lie in \[15.0, 100.0\]"),
        ({"text_projection": {"activation": "rleu"}}, "text_projection.activation is 'rleu'; it is one of none, gelu"),
        ({"video_projection": {"identity": True}}, r"identity is for towers as wide as model.embed, .* embed 6"),
        ({"video_projection": {"biased": True}}, "model.video_projection has an unknown key 'biased'"),
    ],
)
def test_bad_attributes_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shapes(make(**changes))


def test_unpaired_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 clips and 2 texts"):
        jax.eval_shape(functools.partial(make().init, train=False), jax.random.key(0), VIDEO, TEXT[:2])
