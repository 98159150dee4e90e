"""The video encoder in its layouts, with its stems, positions and relative bias, against what defines each."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.models.video import Model, Output
from vidlang.nn.layouts import GRIDDED, LAYOUTS
from vidlang.nn.slicing import slice_params
from vidlang.nn.stems import View, ViewStem, inflate
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials, streams
from vidlang.ops.positions import sincos_1d
from vidlang.ops.relative import table_rows
from vidlang.ops.widths import DrawnWidths

LAYERS, WIDTH, HEADS, MLP = 2, 16, 4, 32
RNG = np.random.default_rng(0)
VIDEO = jnp.asarray(RNG.integers(0, 256, (2, 4, 8, 16, 3)), jnp.uint8)  # 2 x 2 x 4 tokens of 2 x 4 x 4
GRID = (2, 2, 4)
HALF = WIDTH // 2
DRAWN_HALF = DrawnWidths(jnp.ones(LAYERS, jnp.int32), (1.0, 0.5))
TUBES = ({"size": (2, 4, 4), "stride": (2, 4, 4)}, {"size": (4, 2, 2), "stride": (4, 4, 8), "offset": (0, 1, 1)})


def make(layout: str = "joint", *, relative: bool = False, groups: int = 1, **options: Any) -> Model:
    transformer = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "mlp": MLP, "dtype": "float32"}
    transformer |= {"layout": layout, "relative_positions": relative, "groups": groups}
    tubelet = (1 if layout == "frames" else 2, 4, 4)
    return Model(transformer, **{"tubelet": tubelet, "pool": "cls", **options})


def draw(model: Model, video: jax.Array = VIDEO) -> Any:
    """Parameters that are all away from zero."""
    shapes = nn.unbox(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), video))
    rng = np.random.default_rng(1)

    def leaf(path: Any, leaf: Any) -> jax.Array:
        return jnp.asarray(("scale" in str(path)) + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)["params"]


def run(model: Model, p: Any, video: jax.Array = VIDEO, dials: Dials = OFF, *, train: bool = True) -> Output:
    rngs = streams(jax.random.key(0))
    return jax.jit(lambda p, v: model.apply({"params": p}, v, train=train, dials=dials, rngs=rngs))(p, video)


def norm(x: Any, q: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(q["scale"]) + np.asarray(q["bias"])


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_frames_are_encoded_alone_and_averaged(pool: str) -> None:
    model = make("frames", pool=pool)
    p = draw(model)
    assert "temporal" not in p and p["patch"]["kernel"].shape == (4, 4, 3, WIDTH)
    output, alone = run(model, p), [run(model, p, VIDEO[:, t : t + 1]) for t in range(4)]
    np.testing.assert_allclose(output.pooled_BD, np.mean([a.pooled_BD for a in alone], axis=0), rtol=1e-4, atol=1e-5)
    tokens = np.concatenate([a.tokens_BMD for a in alone], axis=1)
    np.testing.assert_allclose(output.tokens_BMD, tokens, rtol=1e-4, atol=1e-5)
    # One frame is what the joint encoder makes of it that has the same parameters and no position in time.
    joint = make(pool=pool, tubelet=(1, 4, 4))
    q = {**p, "patch": {**p["patch"], "kernel": p["patch"]["kernel"][None]}, "temporal": jnp.zeros((1, WIDTH))}
    np.testing.assert_allclose(run(joint, q, VIDEO[:, :1]).pooled_BD, alone[0].pooled_BD, rtol=1e-4, atol=1e-5)


def test_attention_over_frames_sees_them_in_any_order_and_weighs_them() -> None:
    model = make("frames", pool_frames="attention")
    p = draw(model)
    one, other = (np.asarray(run(model, p, video).pooled_BD) for video in (VIDEO, VIDEO[:, ::-1]))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert np.abs(one - run(make("frames"), {k: p[k] for k in p if k != "frame_pool"}).pooled_BD).max() > 0.1


def test_factorized_with_closed_gates_is_frames_but_for_cls() -> None:
    frames, factorized = make("frames", pool="mean"), make("factorized", pool="mean", tubelet=(1, 4, 4))
    p = draw(factorized)
    layers = {**p["stack"]["layers"], "time_gate": jnp.zeros(LAYERS)}
    p = {**p, "temporal": jnp.zeros((4, WIDTH)), "stack": {"layers": layers}}
    spatial = {name: leaf for name, leaf in layers.items() if not name.startswith("time_")}
    kernel = p["patch"]["kernel"][0]
    q = {name: leaf for name, leaf in p.items() if name != "temporal"}
    q |= {"patch": {**p["patch"], "kernel": kernel}, "stack": {"layers": spatial}}
    one, other = run(factorized, p), run(frames, q)
    np.testing.assert_allclose(one.pooled_BD, other.pooled_BD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", GRIDDED)
def test_tube_masked_tokens_keep_their_grid(layout: str) -> None:
    """The model equals its own parts put together: the chosen tokens in a stack of as many frames."""
    model = make(layout, pool="mean", positions="none")
    p = draw(model)
    output = run(model, p, dials=Dials(mask=0.5, mask_kind="tube"))
    kept = np.asarray(output.kept_BM).reshape(2, 2, 4)
    np.testing.assert_array_equal(kept[:, 1], kept[:, 0] + 8)
    pixels = np.asarray(VIDEO, np.float64) / 255 * 2 - 1
    boxes = pixels.reshape(2, 2, 2, 2, 4, 4, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, 16, 96)
    x = boxes @ np.asarray(p["patch"]["kernel"], np.float64).reshape(96, WIDTH) + np.asarray(p["patch"]["bias"])
    x = np.take_along_axis(x, np.asarray(output.kept_BM)[..., None], axis=1)
    y = jax.jit(lambda q, x: Stack(model.video_spec).apply({"params": q}, x, times=2).x_BMD)(
        p["stack"], jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(output.tokens_BMD, norm(y, p["norm"]), rtol=1e-3, atol=1e-4)


def test_cells_of_frames_are_masked_frame_by_frame() -> None:
    model = make("frames", relative=True)
    p = draw(model)
    output = run(model, p, dials=Dials(mask=0.5, mask_kind="cell"))
    kept = np.asarray(output.kept_BM).reshape(2, 4, 4)
    assert (kept // 8 == np.arange(4)[:, None]).all() and len(np.unique(kept % 8)) == 8
    assert np.isfinite(output.pooled_BD).all()


@pytest.mark.parametrize(
    ("layout", "dials", "words"),
    [
        ("divided", {"edges": {"block": 4}}, "'divided' attends along .*edges draws a graph over all"),
        ("factorized", {"keep": {0: 0.5}}, "keep leaves frames of unequal size"),
        ("timesformer", {"mask": 0.5}, "a mask of kind 'random' would tear holes into; set .* to 'tube', or"),
        ("divided", {"mask": 0.5, "mask_kind": "cell"}, "a mask of kind 'cell'"),
        ("frames", {"edges": {"block": 4}}, "every frame by itself, and the dial edges"),
        ("frames", {"keep": {0: 0.5}}, "keep leaves frames of unequal size"),
        ("frames", {"mask": 0.5}, "to 'tube' or 'cell'"),
    ],
)
def test_dials_that_leave_no_grid_are_refused(layout: str, dials: dict[str, Any], words: str) -> None:
    model = make(layout)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), VIDEO, train=True, dials=Dials(**dials)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool_frames": "attention"}, "pools frames that were encoded one by one"),
        ({"pool_frames": "max"}, "pool_frames is 'max'; it is one of mean, attention"),
        ({"positions": "fixed"}, "positions is 'fixed'"),
        ({"extend_positions": "cubic"}, "extend_positions is 'cubic'"),
        ({"layout": "frames", "tubelet": (2, 4, 4)}, "a token is of one frame"),
        ({"relative": True, "image_patch": (4, 4)}, "relative positions are of one grid"),
        ({"views": TUBES}, "no table of learned positions fits views"),
        ({"views": TUBES, "positions": "sincos", "layout": "divided"}, "views share no grid"),
        ({"views": [{"size": (2, 4, 4)}], "positions": "sincos"}, "stride"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(make(**options).init, train=False), jax.random.key(0), VIDEO)


@pytest.mark.parametrize("first", [VIDEO, VIDEO[:, :1]], ids=["video first", "image first"])
def test_both_stems_have_parameters_whatever_comes_first(first: jax.Array) -> None:
    p = draw(make(image_patch=(4, 4)), first)
    assert p["patch"]["kernel"].shape == (2, 4, 4, 3, WIDTH) and p["image_patch"]["kernel"].shape == (4, 4, 3, WIDTH)
    assert p["temporal"].shape == ((2 if first.shape[1] == 4 else 1), WIDTH)


def test_an_image_is_a_still_clip_of_one_tubelet_through_the_inflated_stem() -> None:
    model = make(image_patch=(4, 4))
    p = draw(model)
    p = {**p, "patch": {"kernel": inflate(p["image_patch"]["kernel"], 2), "bias": p["image_patch"]["bias"]}}
    image = run(model, p, VIDEO[:, :1])
    q = {**{name: leaf for name, leaf in p.items() if name != "image_patch"}, "temporal": jnp.zeros((1, WIDTH))}
    still = run(make(), q, jnp.repeat(VIDEO[:, :1], 2, axis=1))
    np.testing.assert_allclose(image.tokens_BMD, still.tokens_BMD, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(image.kept_BM, np.tile(np.arange(8), (2, 1)))
    # An image gets no position in time, and the video stem does not see it.
    other = {**p, "temporal": p["temporal"] + 1, "patch": jax.tree.map(jnp.zeros_like, p["patch"])}
    np.testing.assert_array_equal(image.tokens_BMD, run(model, other, VIDEO[:, :1]).tokens_BMD)


def test_views_are_the_tokens_with_fixed_positions() -> None:
    model = make(views=TUBES, positions="sincos")
    p = draw(model)
    assert set(p) == {"views", "cls", "norm", "stack"}
    views = tuple(View(**view) for view in TUBES)
    pixels = jnp.asarray(np.asarray(VIDEO) / 255 * 2 - 1, jnp.float32)
    x = ViewStem(views, WIDTH, jnp.float32).apply({"params": p["views"]}, pixels)
    x = jnp.concatenate([jnp.broadcast_to(p["cls"], (2, 1, WIDTH)), x], axis=1)
    y = jax.jit(lambda q, x: Stack(model.video_spec).apply({"params": q}, x, globals=1).x_BMD)(p["stack"], x)[:, 1:]
    np.testing.assert_allclose(run(model, p).tokens_BMD, norm(y, p["norm"]), rtol=1e-3, atol=1e-4)
    assert run(model, p, dials=Dials(mask=0.5)).kept_BM.shape == (2, round(x.shape[1] / 2))
    with pytest.raises(ValueError, match="views share no grid that a mask of kind 'tube'"):
        run(model, p, dials=Dials(mask=0.5, mask_kind="tube"))


@pytest.mark.slow
def test_positions_are_added_learned_fixed_or_not_at_all() -> None:
    none, fixed, learned = (make(positions=kind) for kind in ("none", "sincos", "learned"))
    p = draw(learned)
    bare = {name: leaf for name, leaf in p.items() if name not in ("temporal", "spatial")}
    assert set(draw(none)) == set(draw(fixed)) == set(bare)
    waves_ND = np.asarray(sincos_1d(16, WIDTH)).reshape(2, 8, WIDTH)
    # Waves are no sum of one table for time and one for space, so only one frame can be compared.
    q = {**bare, "temporal": jnp.zeros((1, WIDTH)), "spatial": jnp.asarray(waves_ND[0])}
    first = VIDEO[:, :2]
    np.testing.assert_allclose(run(fixed, bare, first).tokens_BMD, run(learned, q, first).tokens_BMD, atol=1e-4)
    zeros = {**p, "temporal": 0 * p["temporal"], "spatial": 0 * p["spatial"]}
    np.testing.assert_allclose(run(none, bare).tokens_BMD, run(learned, zeros).tokens_BMD, atol=1e-4)
    whole = run(fixed, bare).tokens_BMD
    assert np.abs(whole - run(none, bare).tokens_BMD).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"positions": "sincos"},
        {"positions": "sincos", "views": TUBES},
        {"relative": True, "groups": 2},
        {"layout": "divided"},
        {"layout": "factorized"},
        {"layout": "frames", "pool_frames": "attention"},
    ],
    ids=str,
)
def test_a_width_is_the_same_static_drawn_and_cut_out(options: dict[str, Any]) -> None:
    model = make(**options)
    p = draw(model)
    static = run(model, p, dials=Dials(widths=(HALF,) * LAYERS))
    traced = run(model, p, dials=Dials(widths=DRAWN_HALF))
    assert static.pooled_BD.shape == (2, HALF)
    for one, other in ((static.tokens_BMD, traced.tokens_BMD), (static.pooled_BD, traced.pooled_BD)):
        np.testing.assert_allclose(one, other[..., :HALF], rtol=1e-4, atol=1e-4)
        assert not np.asarray(other[..., HALF:]).any()
    small, cut = slice_params(model, p, (HALF,) * LAYERS, VIDEO)
    np.testing.assert_allclose(run(small, cut).pooled_BD, static.pooled_BD, rtol=1e-4, atol=1e-4)


# What has no gradient at the start, because what it is multiplied with is zero.
STILL = {
    "divided": ("time_attention/query", "time_attention/key", "time_attention/out/kernel", "time_attention_norm"),
    "timesformer": ("time_attention/query", "time_attention/key", "time_attention/value", "time_attention_norm"),
    "factorized": ("time_attention",),
}
STILL["timesformer_cls"] = STILL["timesformer"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_first_step_reaches_every_parameter(layout: str) -> None:
    model = make(layout, pool_frames="attention" if layout == "frames" else "mean")
    p = nn.unbox(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), VIDEO))["params"]

    def loss(p: Any) -> jax.Array:
        output = model.apply({"params": p}, VIDEO, train=True)
        return jnp.sin(output.pooled_BD * jnp.arange(WIDTH)[None]).sum() + jnp.cos(3 * output.tokens_BMD).sum()

    step = jax.jit(jax.value_and_grad(loss))
    _, gradients = step(p)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        name = "/".join(key.key for key in path)
        assert np.isfinite(leaf).all(), name
        # A key's bias shifts all logits of a query alike; what time adds is the same for all of a constant's tokens.
        still = name.endswith("key/bias") or any(part in name for part in STILL.get(layout, ()))
        assert still or np.abs(leaf).max() > 1e-7, name
    moved = step(jax.tree.map(lambda leaf, gradient: leaf - 0.01 * gradient, p, gradients))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))


def by_offsets(p: Any, keep: dict[int, float], masked_BM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(kept tokens, what becomes of them), a clip at a time, each pair's bias looked up by its offset in the grid."""
    pixels = np.asarray(VIDEO, np.float64) / 255 * 2 - 1
    boxes = pixels.reshape(2, 2, 2, 2, 4, 4, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, 16, 96)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)

    def row(q: int, k: int) -> int:
        if q < 0 or k < 0:
            return -1 if q == k else (-3 if q < 0 else -2)
        found = 0
        for one, other, size in zip(np.unravel_index(q, GRID), np.unravel_index(k, GRID), GRID, strict=True):
            found = found * (2 * size - 1) + int(one) - int(other) + size - 1
        return found

    results = []
    for clip, masked in zip(boxes, masked_BM, strict=True):
        x = clip @ p["patch"]["kernel"].reshape(96, WIDTH) + np.asarray(p["patch"]["bias"])
        x, alive = np.concatenate([p["cls"][None], x[masked]]), np.concatenate([[-1], masked])
        for index in range(LAYERS):
            q = jax.tree.map(lambda leaf, index=index: leaf[index], p["stack"]["layers"])
            y, a = norm(x, q["attention_norm"]), q["attention"]
            query, keys, values = (
                np.einsum("ND,DAK->ANK", y, a[name]["kernel"]) + a[name]["bias"][:, None]
                for name in ("query", "key", "value")
            )
            bias = np.array([[a["relative"][row(one, other)] for other in alive] for one in alive])
            logits = query @ keys.swapaxes(-1, -2) / math.sqrt(WIDTH // HEADS) + bias.transpose(2, 0, 1)
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            x = x + np.einsum("ANK,AKD->ND", weights @ values, a["out"]["kernel"]) + a["out"]["bias"]
            h = norm(x, q["mlp_norm"]) @ q["mlp_in"]["kernel"] + q["mlp_in"]["bias"]
            h = h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))) / 2
            x = x + h @ q["mlp_out"]["kernel"] + q["mlp_out"]["bias"]
            if index in keep:
                score = weights[:, 0, 1:].mean(0)
                stay = np.sort(np.argsort(-score)[: math.ceil(keep[index] * (len(alive) - 1))])
                stay = np.concatenate([[0], 1 + stay])
                alive, x = alive[stay], x[stay]
        results.append((alive[1:], norm(x, p["norm"])[1:]))
    kept, tokens = zip(*results, strict=True)
    return np.stack(kept), np.stack(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("edges", [None, {"local": 1, "random": 9, "block": 2}], ids=["dense", "full graph"])
@pytest.mark.parametrize(("mask", "keep"), [(0.0, {}), (0.0, {0: 0.6}), (0.5, {0: 0.6})], ids=str)
def test_relative_bias_is_that_of_each_pair_of_places(edges: Any, mask: float, keep: dict[int, float]) -> None:
    model = make(relative=True, positions="none")
    p = draw(model)
    table = p["stack"]["layers"]["attention"]["relative"]
    assert table.shape == (LAYERS, table_rows(GRID), HEADS)
    # Three heads of cls look at itself, so what it attends to is what the fourth does: the ranking depends on the bias.
    p["stack"]["layers"]["attention"]["relative"] = table.at[:, -1].set(jnp.asarray([[20.0, 20.0, 20.0, 0.0]]))
    output = run(model, p, dials=Dials(mask=mask, edges=edges, keep=keep))
    masked = run(model, p, dials=Dials(mask=mask)).kept_BM if mask else np.tile(np.arange(16), (2, 1))
    kept, tokens = by_offsets(p, keep, np.asarray(masked))
    np.testing.assert_array_equal(output.kept_BM, kept)
    np.testing.assert_allclose(output.tokens_BMD, tokens, rtol=1e-3, atol=1e-4)


def test_a_clip_of_another_grid_is_refused_in_words() -> None:
    model = make(relative=True, positions="none")
    with pytest.raises(ValueError, match=r"a grid \(1, 2, 4\) .* need 24 relative positions; these parameters have 66"):
        run(model, draw(model), VIDEO[:, :2])


def test_frozen_layers_name_their_stems() -> None:
    model = make(image_patch=(4, 4))
    frozen = dataclasses.replace(model, transformer={**model.transformer, "frozen_layers": 1}).frozen
    assert "image_patch" in next(iter(frozen))
