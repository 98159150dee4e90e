"""The aggregator: features of segments become one unit embedding, beside the text tower of a dual encoder."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlang.core import tree
from vidlang.models import dual_encoder
from vidlang.models.aggregator import Model
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.objectives import contrastive
from vidlang.ops.dials import Dials, streams

TRANSFORMER = {"layers": 2, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}
TEXT_CONFIG = {"vocab": 12, "max_length": 6, "transformer": TRANSFORMER, "pool": "mean"}
SHARED: dict[str, Any] = {
    "text": TEXT_CONFIG,
    "embed": 8,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
    "text_projection": {"activation": "relu"},
}
MEAN = Model(features=8, segments=5, transformer=TRANSFORMER, **SHARED)
CLS = Model(features=16, segments=5, transformer=TRANSFORMER, pool="cls", **SHARED | {"embed": 16})
AVERAGE = Model(features=8, segments=5, transformer={"layers": 0}, **SHARED)
MODELS = {"mean": MEAN, "cls": CLS, "average": AVERAGE}
RNG = np.random.default_rng(0)
TEXT = np.array([[2, 5, 7, 3, 0, 0], [2, 8, 3, 0, 0, 0], [2, 5, 6, 4, 9, 3], [2, 9, 3, 0, 0, 0]])


def features(model: Model) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(4, 5, model.features)).astype(np.float32)


def shapes(model: Model) -> Any:
    init = functools.partial(model.init, train=False)
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), features(model), TEXT))["params"]


@functools.cache
def found() -> dict[str, Any]:
    """(parameters, outputs) of each model, from one program."""
    params = {
        name: jax.tree.map(lambda leaf: (0.3 * RNG.normal(size=leaf.shape)).astype(np.float32), shapes(model))
        for name, model in MODELS.items()
    }

    @jax.jit
    def run(params: Any) -> Any:
        return {
            name: {
                "both": model.apply({"params": params[name]}, features(model), TEXT, train=True),
                "video": model.apply({"params": params[name]}, features(model), method="embed_video"),
                "fewer": model.apply({"params": params[name]}, features(model)[:, :3], method="embed_video"),
                "text": model.apply({"params": params[name]}, TEXT, method="embed_text"),
            }
            for name, model in MODELS.items()
        }

    outputs = run(params)
    return {name: (params[name], outputs[name]) for name in MODELS}


def by_hand(model: Model, params: Any, features_BSD: np.ndarray) -> np.ndarray:
    """Float64 but for the layers in between, which are the library's."""
    x_BSD, pooled_BD = features_BSD.astype(np.float64), features_BSD.mean(axis=1, dtype=np.float64)
    if model is not AVERAGE:
        p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["aggregator"])
        if "stem" in p:
            x_BSD = x_BSD @ p["stem"]["kernel"] + p["stem"]["bias"]
        x_BSD = x_BSD + p["positions"][: x_BSD.shape[1]]
        if model is CLS:
            x_BSD = np.concatenate([np.broadcast_to(p["cls"], (len(x_BSD), 1, 16)), x_BSD], axis=1)
        stack = Stack(TransformerSpec(**TRANSFORMER))
        run = jax.jit(lambda params, x_BSD: stack.apply({"params": params}, x_BSD).x_BMD)
        x_BSD = np.asarray(run(params["aggregator"]["stack"], x_BSD.astype(np.float32)), np.float64)
        x_BSD = (x_BSD - x_BSD.mean(-1, keepdims=True)) / np.sqrt(x_BSD.var(-1, keepdims=True) + 1e-6)
        x_BSD = x_BSD * p["norm"]["scale"] + p["norm"]["bias"]
        pooled_BD = x_BSD[:, 0] if model is CLS else x_BSD.mean(axis=1)
        if "projection" in p:
            pooled_BD = pooled_BD @ p["projection"]["kernel"]
    return pooled_BD / np.linalg.norm(pooled_BD, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_is_what_the_layers_pool_of_the_segments(name: str) -> None:
    model, (params, output) = MODELS[name], found()[name]
    np.testing.assert_allclose(output["video"], by_hand(model, params, features(model)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(output["fewer"], by_hand(model, params, features(model)[:, :3]), rtol=1e-3, atol=1e-4)
    for each in ("video", "text"):
        assert output[each].dtype == jnp.float32
        np.testing.assert_allclose(output["both"].video_BE if each == "video" else output["both"].text_BE, output[each])
    assert float(output["both"].scale) == pytest.approx(np.exp(float(params["log_scale"])), rel=1e-5)


def test_maps_stand_only_where_widths_differ_and_a_mean_learns_nothing() -> None:
    own = {name: set(shapes(model).get("aggregator", ())) for name, model in MODELS.items()}
    assert own["mean"] == {"stem", "positions", "stack", "norm", "projection"}
    assert own["cls"] == {"positions", "cls", "stack", "norm"}  # HierVL's, whose widths are all the same
    assert own["average"] == set()


def test_the_text_tower_is_that_of_the_dual_encoder_it_starts_from() -> None:
    video = {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)}
    before = dual_encoder.Model(video=video, **SHARED)
    clips = np.zeros((4, 2, 16, 16, 3), np.uint8)
    shape = jax.eval_shape(functools.partial(before.init, train=False), jax.random.key(0), clips, TEXT)
    params = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), nn.unbox(shape)["params"])
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(MEAN))
    merged, report = tree.merge(fresh, params)
    report.raise_unless(["^video_encoder/", "^video_projection/", "^aggregator/"])
    one = jax.jit(functools.partial(MEAN.apply, method="embed_text"))({"params": merged}, TEXT)
    other = jax.jit(functools.partial(before.apply, method="embed_text"))({"params": params}, TEXT)
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_it_learns_what_lies_in_the_order_of_segments() -> None:
    """Four videos of the same segments in another order have the same mean, and not the same text."""
    segments_SD = RNG.normal(size=(5, 8)).astype(np.float32)
    ordered_BSD = np.stack([np.roll(segments_SD, k, axis=0) for k in range(4)])
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            output = MEAN.apply({"params": params}, ordered_BSD, TEXT, train=True, rngs=streams(jax.random.key(0)))
            return contrastive.loss(output, {})[0]

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=200)[1]

    init = jax.jit(functools.partial(MEAN.init, train=False))
    losses = train(nn.unbox(init(jax.random.key(0), ordered_BSD, TEXT))["params"])
    assert losses[0] > 1.2 and losses[-1] < 0.3, losses


def test_rows_draw_the_same_in_any_part_of_the_batch() -> None:
    model = MEAN.clone(transformer=TRANSFORMER | {"drop_path": 0.5})
    rows_B = np.array([3, 1])

    @jax.jit
    def run(params: Any) -> Any:
        apply = functools.partial(model.apply, {"params": params}, method="encode", rngs=streams(jax.random.key(1)))
        whole, still = (apply(features(MEAN), TEXT, train=train).video_BE[rows_B] for train in (True, False))
        part = apply(features(MEAN)[rows_B], TEXT[rows_B], train=True, dials=Dials(rows_B=jnp.asarray(rows_B)))
        return whole, part.video_BE, still

    whole, part, still = run(found()["mean"][0])
    np.testing.assert_allclose(whole, part, atol=1e-5)
    assert np.abs(whole - still).max() > 1e-3, "no path was dropped"


@pytest.mark.parametrize(
    ("model", "dials", "words"),
    [
        (MEAN, Dials(mask=0.5), "an aggregator has none"),
        (MEAN, Dials(widths="d-384"), "choose a variant in clip.features"),
        (MEAN.clone(features=9), Dials(), r"features are \[B, S, 9\] .*found the shape \(4, 5, 8\)"),
        (MEAN.clone(segments=4), Dials(), "videos of 5 segments; this model has positions for 4"),
        (MEAN.clone(pool="max"), Dials(), "model.pool is 'max'"),
        (AVERAGE.clone(embed=9), Dials(), "is the mean of its segments.*features 8 and embed 9"),
        (MEAN.clone(transformer=TRANSFORMER | {"causal": True}), Dials(), "model.transformer.causal is True"),
        (MEAN.clone(transformer={"width": 16}), Dials(), "model.transformer lacks 'layers'"),
    ],
)
def test_what_cannot_be_is_said(model: Model, dials: Dials, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(model.init, train=False, dials=dials), jax.random.key(0), features(MEAN), TEXT)
