"""Towers of published models: their settings give the parameters that those have, and compute their formulas."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.tree import flatten_paths
from vidlang.models import text, video
from vidlang.nn.slicing import slice_params
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials, streams
from vidlang.ops.widths import SHARES, DrawnWidths

SIZES = {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
RNG = np.random.default_rng(0)
VIDEO = jnp.asarray(RNG.integers(0, 256, (3, 2, 16, 8, 3)), jnp.uint8)  # 2 x 2 x 1 patches of 8 x 8
TEXT = jnp.array([[2, 5, 7, 9, 3], [2, 8, 3, 0, 0], [2, 5, 6, 4, 3]])
BERT = SIZES | {"norm": "post", "epsilon": 1e-12}
TEXTS: dict[str, dict[str, Any]] = {
    "bert": {"transformer": BERT, "pool": "cls", "token_types": 2, "norm_embeddings": True, "final_norm": False},
    "distilbert": {"transformer": BERT, "pool": "cls", "norm_embeddings": True, "final_norm": False},
    "clip": {"transformer": SIZES | {"causal": True, "activation": "quick_gelu", "epsilon": 1e-5}, "pool": "eos"},
}
PATCHES = {"tubelet": (1, 8, 8)}
BEIT = SIZES | {"layer_scale": 0.1, "relative_positions": True}
VIDEOS: dict[str, dict[str, Any]] = {
    "clip": {
        "transformer": SIZES | {"activation": "quick_gelu", "epsilon": 1e-5},
        **PATCHES,
        "pool": "cls",
        "stem_bias": False,
        "norm_stem": True,
        "temporal_std": 0.0,
    },
    "beit": {"transformer": BEIT, **PATCHES, "positions": "none", "pool": "mean", "cls": True, "norm_pooled": True},
    "videomae": {"transformer": SIZES, "tubelet": (2, 8, 8), "positions": "sincos", "norm_pooled": True},
    "egovlp": {"transformer": SIZES | {"layout": "divided"}, **PATCHES, "pool": "cls", "temporal_std": 0.0},
}


def make_text(name: str) -> text.Model:
    return text.Model(**{"vocab": 12, "max_length": 8, **TEXTS[name]})


def draw(model: Any, example: jax.Array) -> Any:
    """Parameters that are all away from zero."""
    shapes = nn.unbox(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), example))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), shapes)["params"]


@functools.cache
def encoded(name: str, keep: bool = False) -> tuple[Any, video.Output]:
    """(parameters, output) of a video tower."""
    model = video.Model(**VIDEOS[name])
    params, dials = draw(model, VIDEO), Dials(keep={0: 0.5}) if keep else OFF
    return params, jax.jit(lambda p: model.apply({"params": p}, VIDEO, train=False, dials=dials))(params)


def norm(x: np.ndarray, q: Any, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * np.asarray(q["scale"]) + np.asarray(q["bias"])


def stack(section: dict[str, Any], params: Any, x_BND: np.ndarray, mask_BANS: Any = None, **options: Any) -> np.ndarray:
    """The layers alone, which have tests of their own."""
    apply = functools.partial(Stack(TransformerSpec(**section)).apply, {"params": params}, **options)
    return np.asarray(jax.jit(lambda x: apply(x, mask_BANS).x_BMD)(jnp.asarray(x_BND, jnp.float32)), np.float64)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_embeddings_layers_and_the_token_that_stands_for_all(name: str) -> None:
    model = make_text(name)
    params = draw(model, TEXT)
    found = jax.jit(lambda p: model.apply({"params": p}, TEXT, train=False))(params)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = p["words"]["table"][np.asarray(TEXT)] + p["positions"][:5]
    if name != "clip":
        x = norm(x + (p["token_types"][0] if name == "bert" else 0), p["embedding_norm"], 1e-12)
    valid = np.array([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    x = stack(TEXTS[name]["transformer"], params["stack"], x, jnp.asarray(valid)[:, None, None])
    if name == "clip":
        x = norm(x, p["norm"], 1e-5)
    np.testing.assert_array_equal(found.valid_BL, valid)
    np.testing.assert_allclose(found.tokens_BLD, x, rtol=1e-4, atol=1e-4)
    pooled = x[np.arange(3), [4, 2, 4]] if name == "clip" else x[:, 0]
    np.testing.assert_allclose(found.pooled_BD, pooled, rtol=1e-4, atol=1e-4)


def test_texts_have_only_what_their_model_has() -> None:
    names = {name: {path.split("/")[0] for path in flatten_paths(draw(make_text(name), TEXT))} for name in TEXTS}
    assert names["distilbert"] == {"words", "positions", "embedding_norm", "stack"}
    assert names["bert"] == names["distilbert"] | {"token_types"}
    assert names["clip"] == {"words", "positions", "stack", "norm"}


@pytest.mark.slow
def test_texts_drop_paths_by_their_own_rows() -> None:
    model = text.Model(vocab=12, max_length=8, transformer=SIZES | {"drop_path": 0.5}, pool="cls")
    params, many = draw(model, TEXT), jnp.tile(TEXT[:1], (6, 1))

    def pooled(text_BL: jax.Array, dials: Dials) -> np.ndarray:
        rngs = streams(jax.random.key(2))
        return np.asarray(model.apply({"params": params}, text_BL, train=True, dials=dials, rngs=rngs).pooled_BD)

    whole = pooled(many, OFF)
    assert len(np.unique(whole.round(3), axis=0)) > 1
    np.testing.assert_allclose(pooled(many[:2], Dials(rows_B=jnp.array([4, 1]))), whole[[4, 1]], atol=1e-5)


def test_clips_video_is_patches_without_bias_and_a_norm_before_and_after_the_layers() -> None:
    params, found = encoded("clip")
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    assert set(p) == {"patch", "temporal", "spatial", "cls", "stem_norm", "stack", "norm"} and set(p["patch"]) == {
        "kernel"
    }
    pixels = np.asarray(VIDEO, np.float64) / 255 * 2 - 1
    patches = pixels.reshape(3, 2, 2, 8, 8, 3).reshape(3, 2, 2, 192)
    x = patches @ p["patch"]["kernel"].reshape(192, 16) + p["temporal"][:, None] + p["spatial"]
    x = np.concatenate([np.tile(p["cls"], (3, 1, 1)), x.reshape(3, 4, 16)], axis=1)
    x = stack(VIDEOS["clip"]["transformer"], params["stack"], norm(x, p["stem_norm"], 1e-5), globals=1)
    x = norm(x, p["norm"], 1e-5)
    np.testing.assert_allclose(found.tokens_BMD, x[:, 1:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.pooled_BD, x[:, 0], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.cls_BD, found.pooled_BD)


@pytest.mark.parametrize("keep", [False, True])
def test_beit_pools_kept_tokens_before_a_norm_of_the_mean_and_gives_normalised_ones(keep: bool) -> None:
    """From what the layers leave, which a spy on the stack sees."""
    params, found = encoded("beit", keep)
    assert found.tokens_BMD.shape == (3, 2 if keep else 4, 16) and found.cls_BD.shape == (3, 16)
    assert set(params) == {"patch", "cls", "stack", "norm", "pooled_norm"}
    model = video.Model(**VIDEOS["beit"])
    dials = Dials(keep={0: 0.5}) if keep else OFF

    def raw(model: video.Model) -> jax.Array:
        """What the layers leave, with cls in front."""
        layers: list[Any] = []

        def spy(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = next_call(*args, **kwargs)
            if isinstance(context.module, Stack) and context.method_name == "__call__":
                layers.append(result.x_BMD)
            return result

        with nn.intercept_methods(spy):
            model(VIDEO, train=False, dials=dials)
        return layers[0]

    x = np.asarray(jax.jit(lambda p: model.apply({"params": p}, method=raw))(params), np.float64)
    np.testing.assert_allclose(found.tokens_BMD, norm(x[:, 1:], params["norm"], 1e-6), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.cls_BD, norm(x[:, 0], params["norm"], 1e-6), rtol=1e-3, atol=1e-3)
    expected = norm(x[:, 1:].mean(1), params["pooled_norm"], 1e-6)
    np.testing.assert_allclose(found.pooled_BD, expected, rtol=1e-3, atol=1e-3)


def test_a_norm_of_the_mean_follows_the_width() -> None:
    """Under a drawn width, the mean is normalised over its channels, and there are no others."""
    params, _ = encoded("videomae")
    model = video.Model(**VIDEOS["videomae"])

    def pooled(widths: Any) -> np.ndarray:
        apply = functools.partial(model.apply, train=True, dials=Dials(widths=widths))
        return np.asarray(jax.jit(lambda p: apply({"params": p}, VIDEO).pooled_BD)(params))

    static, drawn = pooled((16, 8)), pooled(DrawnWidths(jnp.array([0, 2]), SHARES))
    np.testing.assert_allclose(drawn[:, :8], static, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(drawn[:, 8:], 0.0)


def test_positions_in_time_may_start_at_zero_and_others_do_not() -> None:
    start = jax.jit(functools.partial(video.Model(**VIDEOS["egovlp"]).init, train=False))(jax.random.key(0), VIDEO)
    params = nn.unbox(start)["params"]
    assert not np.abs(params["temporal"]).any()
    assert 0.01 < np.std(params["spatial"]) < 0.03


def test_frames_have_no_cls_token_of_the_clip() -> None:
    model = video.Model(**{"transformer": SIZES | {"layout": "frames"}, **PATCHES, "pool": "cls"})
    output = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), VIDEO)[0]
    assert output.cls_BD is None and output.pooled_BD.shape == (3, 16)


@pytest.mark.parametrize(
    ("tower", "changes", "words"),
    [
        ("clip", {"cls": False}, "pool 'cls' takes the normalised cls token"),
        ("clip", {"norm_pooled": True}, "pool 'cls' takes the normalised cls token"),
        ("clip", {"final_norm": False}, "pool 'cls' takes the normalised cls token"),
        (
            "egovlp",
            {"stem_epsilon": 1e-5},
            "stem_epsilon is 1e-05; it is a positive number, of the norm that norm_stem",
        ),
        ("egovlp", {"pooled_epsilon": 1e-5}, "pooled_epsilon is 1e-05; it is a positive number, of the norm that"),
        ("egovlp", {"positions": "joint", "image_patch": (8, 8)}, "'joint' is one table for all places of a clip"),
        ("egovlp", {"positions": "joint", "transformer": SIZES | {"layout": "frames"}}, "'joint' is one table for all"),
        ("videomae", {"transformer": SIZES | {"causal": True}}, "causal is True"),
    ],
)
def test_videos_that_make_no_sense_are_refused(tower: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(video.Model(**(VIDEOS[tower] | changes)), VIDEO)


def test_without_a_last_norm_tokens_are_as_layers_leave_them_and_the_mean_keeps_its_own() -> None:
    params, found = encoded("beit")
    bare = {name: leaf for name, leaf in params.items() if name != "norm"}
    plain = video.Model(**VIDEOS["beit"], final_norm=False, pooled_epsilon=0.5)
    assert flatten_paths(draw(plain, VIDEO)).keys() == flatten_paths(bare).keys()
    raw = jax.jit(lambda p: plain.apply({"params": p}, VIDEO, train=False))(bare)
    x_BMD, p = np.asarray(raw.tokens_BMD, np.float64), jax.tree.map(np.asarray, params)
    np.testing.assert_allclose(norm(x_BMD, p["norm"], 1e-6), found.tokens_BMD, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(raw.pooled_BD, norm(x_BMD.mean(1), p["pooled_norm"], 0.5), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_joint_positions_are_one_for_each_place_of_the_clip_and_are_cut_with_the_width() -> None:
    model = video.Model(**{**VIDEOS["egovlp"], "transformer": SIZES, "positions": "joint"})
    p = draw(model, VIDEO)
    assert p["positions"].shape == (4, 16) and not {"temporal", "spatial"} & p.keys()
    found = jax.jit(lambda p: model.apply({"params": p}, VIDEO, train=False))(p)
    apart = video.Model(**{**VIDEOS["egovlp"], "transformer": SIZES})
    temporal, spatial = RNG.normal(size=(2, 16)), RNG.normal(size=(2, 16))
    q = {**p, "positions": jnp.asarray((temporal[:, None] + spatial).reshape(4, 16), jnp.float32)}
    r = {name: leaf for name, leaf in p.items() if name != "positions"}
    r |= {"temporal": jnp.asarray(temporal, jnp.float32), "spatial": jnp.asarray(spatial, jnp.float32)}
    one, other = (m.apply({"params": t}, VIDEO, train=False).tokens_BMD for m, t in ((model, q), (apart, r)))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(one) - np.asarray(found.tokens_BMD)).max() > 0.01
    assert slice_params(model, p, (8, 8), VIDEO)[1]["positions"].shape == (4, 8)
    with pytest.raises(ValueError, match="1 frames of 16x8 pixels needs 2 positions with tubelets .* have 4"):
        model.apply({"params": p}, VIDEO[:, :1], train=False)


def test_a_norm_of_the_stem_keeps_the_stems_width() -> None:
    model = video.Model(**VIDEOS["clip"])
    assert model.at((16, 8)).video_spec.schedule == (16, 8)
    with pytest.raises(ValueError, match="norm_stem normalises over all 16 channels"):
        model.at((8, 8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"final_norm": False, "transformer": SIZES}, "final_norm is False, and layers with transformer.norm 'pre'"),
        ({"token_types": -1}, "token_types is -1"),
    ],
)
def test_texts_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(text.Model(**({"vocab": 12, "max_length": 8} | TEXTS["bert"] | changes)), TEXT)


@pytest.mark.slow
def test_quarters_of_a_published_tower_are_its_first_channels() -> None:
    """A cut tower: scales, norms of the mean and layers go by the same width."""
    params, _ = encoded("beit")
    model = video.Model(**VIDEOS["beit"])
    small, cut = slice_params(model, params, (8, 4), VIDEO)
    found = jax.jit(lambda p: small.apply({"params": p}, VIDEO, train=False))(cut)
    expected = jax.jit(lambda p: model.apply({"params": p}, VIDEO, train=False, dials=Dials(widths=(8, 4))))(params)
    assert math.prod(flatten_paths(cut)["stack/layers_0/mlp_scale/scale"].shape) == 8
    np.testing.assert_allclose(found.pooled_BD, expected.pooled_BD, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.tokens_BMD, expected.tokens_BMD, rtol=1e-4, atol=1e-4)
