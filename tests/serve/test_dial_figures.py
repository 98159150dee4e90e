"""The pictures of the dials show what the code does."""

import dataclasses
import functools
from typing import Any
from xml.etree import ElementTree

import flax.linen as nn
import jax
import numpy as np
import pytest

from vidlang.models import dual_encoder, fusion
from vidlang.ops.dials import Dials
from vidlang.ops.edges import Edges
from vidlang.serve import dial_figures
from vidlang.serve.dial_figures import GLOBAL, LOCAL, PALE, RANDOM


def fills(picture: str) -> list[str]:
    return [element.get("fill") for element in ElementTree.fromstring(picture).iter() if element.tag.endswith("rect")]


def test_a_block_graph_shows_each_blocks_own_and_three_random_ones() -> None:
    found = fills(dial_figures.block_graph(frames=4))
    # Fourteen blocks; one box more of each colour is in the legend.
    assert found.count(LOCAL) == 14 + 1 and found.count(RANDOM) == 3 * 14 + 1 and found.count(GLOBAL) == 29 + 1
    assert found.count(PALE) == 14 * 14 - 4 * 14


def test_schedules_are_drawn_to_scale() -> None:
    picture = ElementTree.fromstring(dial_figures.width_schedules(layers=12))
    tall = [float(e.get("height")) for e in picture.iter() if e.get("fill") == LOCAL]
    np.testing.assert_allclose(tall[:12], 60 * np.repeat([1, 0.75, 0.5, 0.25], 3))


TRANSFORMER = {"layers": 3, "width": 16, "heads": 2, "mlp": 16, "dtype": "float32"}
TOWERS: dict[str, Any] = {
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 4, 4), "pool": "cls"},
    "text": {"vocab": 8, "max_length": 4, "transformer": TRANSFORMER, "pool": "mean"},
    "embed": 4,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}
VIDEO = np.random.default_rng(0).integers(0, 120, (4, 8, 12, 3)).astype(np.uint8)  # 2 x 2 x 3 tokens
TEXT = np.array([3, 5, 2, 0], np.int32)


def seen(picture: np.ndarray) -> np.ndarray:
    """Which pixels of each strip are as in the first, [strips, T, H, W]."""
    strips = picture.reshape(-1, 12, 4, 16, 3)[:, :8, :, :12].swapaxes(1, 2)
    np.testing.assert_array_equal(strips[0], VIDEO)
    return (strips == VIDEO).all(-1)


def pixels_of(kept_M: np.ndarray) -> np.ndarray:
    """Which pixels [T, H, W] belong to these tokens."""
    return np.isin(np.arange(12), kept_M).reshape(2, 2, 3).repeat(2, 0).repeat(4, 1).repeat(4, 2)


@pytest.mark.slow
def test_pruned_tokens_are_pale_and_the_others_as_they_were() -> None:
    model, video = dual_encoder.Model(**TOWERS), VIDEO
    init = functools.partial(model.init, train=False)
    params = jax.jit(lambda key: nn.unbox(init(key, video[None], np.ones((1, 4), np.int32)))["params"])
    dials = Dials(keep=((0, 0.5), (1, 0.5), (2, 1.0)))
    pruned = dial_figures.pruned_tokens(model, params := params(jax.random.key(0)), video, dials)
    assert [strip.split(": ")[-1] for strip in pruned.strips] == ["the clip", "6 of 12 tokens", "3 of 12 tokens"]
    assert pruned.picture.shape == (3 * 12, 4 * 16, 3)
    np.testing.assert_allclose(seen(pruned.picture).mean((1, 2, 3)), [1, 6 / 12, 3 / 12])
    encode = functools.partial(model.apply, {"params": params}, video[None])
    kept = encode(method=lambda m, v: m.video_encoder(v, train=False, dials=Dials(keep=((0, 0.5),))).kept_BM)
    np.testing.assert_array_equal(seen(pruned.picture)[1], pixels_of(kept[0]))


@pytest.mark.slow
def test_a_text_prunes_what_the_video_encoder_left() -> None:
    model = fusion.Model(**TOWERS, fusion={"layers": 2})
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO[None], TEXT[None])
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nn.unbox(shapes)["params"])
    dials = Dials(edges=Edges(1, 1, 4), keep=((0, 0.75),), keep_text=((0, 0.5), (1, 0.4)))
    pruned = dial_figures.pruned_tokens(model, params, VIDEO, dials, TEXT, "a ball")
    assert pruned.strips == (
        "the clip",
        "after layer 0, which keeps 0.75: 9 of 12 tokens",
        "after “a ball” was read in fusion layer 0, which keeps 0.5: 5 of 12 tokens",
        "after “a ball” was read in fusion layer 1, which keeps 0.4: 2 of 12 tokens",
    )
    variables = {"params": params}
    video = model.apply(
        variables, VIDEO[None], method=lambda m, v: m.video_encoder(v, train=False, dials=dials)
    )  # its edges are the same in every evaluation
    tokens = np.concatenate([video.cls_BD[:, None], video.tokens_BMD], axis=1)
    by_text = model.apply(variables, tokens, TEXT[None], dials=dials, method="kept")[0]
    np.testing.assert_array_equal(seen(pruned.picture)[1], pixels_of(video.kept_BM[0]))
    np.testing.assert_array_equal(seen(pruned.picture)[3], pixels_of(np.asarray(video.kept_BM[0])[by_text]))
    without = dial_figures.pruned_tokens(model, params, VIDEO, dataclasses.replace(dials, edges=None), TEXT, "a ball")
    assert (without.picture != pruned.picture).any(), "what cls attends to depends on the edges before"


def test_what_prunes_depends_on_rates_and_on_what_the_model_tells() -> None:
    towers, reader = dual_encoder.Model(**TOWERS), fusion.Model(**TOWERS, fusion={"layers": 2})
    by_text = Dials(keep=((0, 1.0),), keep_text=((0, 0.5),))
    assert dial_figures.prunes(reader, by_text) and not dial_figures.prunes(towers, by_text)
    assert dial_figures.prunes(towers, Dials(keep=((0, 0.5),)))
    assert not dial_figures.prunes(reader, Dials(keep=((0, 1.0),), keep_text=((0, 1.0),)))
