"""The classifier: linear heads on what the video encoder pools, dropout row by row, a dual encoder's parameters."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.models import dual_encoder, video
from vidlang.models.classifier import Model, Output
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import Dials, streams

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 64, "dtype": "float32", "drop_path": 0.5}
CONFIG: dict[str, Any] = {
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8), "pool": "cls"},
    "heads": {"verb_label": 5, "noun_label": 3},
}
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (8, 2, 16, 16, 3)).astype(np.uint8)


def make(**changes: Any) -> Model:
    return Model(**(CONFIG | changes))


def shapes(model: Any, *inputs: Any) -> Any:
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO, *inputs)


@functools.cache
def params() -> Any:
    draw = jax.tree.map(lambda leaf: (0.3 * RNG.normal(size=leaf.shape)).astype(np.float32), shapes(make()))
    return nn.unbox(draw)


def train(model: Model, params: Any, video_BTHWC: jax.Array, rows_B: Any = None) -> Output:
    how = {"train": True, "dials": Dials(rows_B=rows_B), "rngs": streams(jax.random.key(1))}
    return jax.jit(lambda p, video: model.apply(p, video, **how))(params, video_BTHWC)


@functools.cache
def evaluated() -> dict[str, Any]:
    @jax.jit
    def run(params: Any) -> dict[str, Any]:
        apply = functools.partial(make().apply, params, VIDEO)
        return {
            "both": apply(train=False),
            "classify": apply(method="classify"),
            "pooled": apply(method="embed_video"),
            "narrow": apply(method="classify", dials=Dials(widths=(32, 16))),
        }

    return run(params())


def test_heads_are_linear_maps_of_the_pooled_vectors() -> None:
    p, found = params()["params"], evaluated()
    encoder = video.Model(**CONFIG["video"])
    pooled_BD = jax.jit(functools.partial(encoder.apply, train=False))({"params": p["video_encoder"]}, VIDEO).pooled_BD
    np.testing.assert_allclose(found["pooled"], pooled_BD, atol=1e-5)
    for name, size in CONFIG["heads"].items():
        logits = found["both"].logits[name]
        assert logits.shape == (8, size) and logits.dtype == jnp.float32
        head = p[f"head_{name}"]
        expected = np.asarray(pooled_BD, np.float64) @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_classify_gives_all_heads_side_by_side() -> None:
    model, found = make(), evaluated()
    assert model.head_sizes == CONFIG["heads"] and list(model.head_sizes) == ["verb_label", "noun_label"]
    logits = [found["both"].logits[name] for name in model.head_sizes]
    np.testing.assert_allclose(found["classify"], np.concatenate(logits, axis=1), atol=1e-5)


def test_heads_start_small() -> None:
    model = make(heads={"label": 2000}, video=CONFIG["video"] | {"transformer": TRANSFORMER | {"layers": 2}})
    p = nn.unbox(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), VIDEO))["params"]
    np.testing.assert_allclose(np.std(p["head_label"]["kernel"]), 0.01, rtol=0.02)
    assert not np.abs(p["head_label"]["bias"]).any()


def test_parameters_of_the_encoder_are_where_a_dual_encoder_has_its_own() -> None:
    both = dual_encoder.Model(
        video=CONFIG["video"],
        text={"vocab": 8, "max_length": 4, "transformer": TRANSFORMER, "pool": "mean"},
        embed=8,
        temperature={"init": 0.07, "max_scale": 100.0, "learnable": True},
    )
    found = flatten_paths(nn.unbox(shapes(both, jnp.zeros((8, 4), jnp.int32))["params"]))
    for name, leaf in flatten_paths(params()["params"]).items():
        assert name.startswith("head_") or found[name].shape == leaf.shape
    frozen = CONFIG["video"] | {"transformer": TRANSFORMER | {"frozen_layers": 1}}
    assert make(video=frozen).frozen == both.clone(video=frozen).frozen
    assert "^video_encoder/stack/layers/" in both.clone(video=frozen).frozen


@pytest.mark.slow
def test_dropout_is_each_rows_own_and_keeps_the_mean() -> None:
    """One clip in every row, without dropped paths: rows differ by what the head's input lost."""
    still = CONFIG["video"] | {"transformer": TRANSFORMER | {"drop_path": 0.0}}
    model, alike = make(video=still, dropout=0.25), jnp.asarray(VIDEO[:1].repeat(8, axis=0))
    key_to_logits = jax.jit(
        jax.vmap(lambda key: model.apply(params(), alike, train=True, rngs=streams(key)).logits["verb_label"])
    )
    drawn = np.asarray(key_to_logits(jax.random.split(jax.random.key(0), 300))).reshape(-1, 5)
    whole = np.asarray(evaluated()["both"].logits["verb_label"][0])
    head = np.asarray(params()["params"]["head_verb_label"]["kernel"], np.float64)
    parts = np.asarray(evaluated()["pooled"], np.float64)[0][:, None] * head
    # The variance of a sum of parts, each of which is there with probability 3/4 and counts 4/3 then.
    std = np.sqrt((parts**2).sum(0) / 3)
    np.testing.assert_allclose(drawn.mean(0), whole, atol=5 * std.max() / np.sqrt(len(drawn)))
    np.testing.assert_allclose(drawn.std(0), std, rtol=0.1)
    rows = np.asarray(train(model, params(), alike).logits["verb_label"])
    assert len(np.unique(rows.round(4), axis=0)) == 8


@pytest.mark.slow
def test_rows_drop_the_same_in_any_part_of_the_batch() -> None:
    whole, rows = train(make(), params(), VIDEO), np.array([6, 1])
    part = train(make(), params(), VIDEO[rows], jnp.asarray(rows))
    for name in CONFIG["heads"]:
        np.testing.assert_allclose(part.logits[name], whole.logits[name][rows], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_classifier_cut_out_is_the_big_one_at_those_widths() -> None:
    small, cut = slice_params(make(), params()["params"], (32, 16), VIDEO)
    found = jax.jit(lambda p: small.apply({"params": p}, VIDEO, method="classify"))(cut)
    np.testing.assert_allclose(found, evaluated()["narrow"], rtol=1e-4, atol=1e-4)
    assert np.abs(found - evaluated()["classify"]).max() > 1e-2


@pytest.mark.slow
def test_eight_devices_classify_and_drop_as_one() -> None:
    model = make()
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use_mesh(mesh):
        placed = jax.device_put(params(), tree_shardings(shapes(model), mesh))
        found = train(model, placed, put_batch({"video": VIDEO}, mesh)["video"])
    for name, logits in train(model, params(), VIDEO).logits.items():
        np.testing.assert_allclose(found.logits[name], logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": {}}, "model.heads is empty"),
        ({"heads": {"label": 1}}, "gives 'label' 1 classes"),
        ({"dropout": 1.0}, r"model.dropout is 1.0; it is a share of the channels, in \[0, 1\)"),
        ({"video": {"tubelet": (2, 8, 8)}}, "model.video lacks 'transformer'"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shapes(make(**changes))


def test_dropout_needs_a_key() -> None:
    model = make(video=CONFIG["video"] | {"transformer": TRANSFORMER | {"drop_path": 0.0}})
    with pytest.raises(ValueError, match=r"dropout is 0.5, which draws channels: call with rngs=\{'dropout': key\}"):
        jax.eval_shape(functools.partial(model.apply, train=True), params(), VIDEO)
