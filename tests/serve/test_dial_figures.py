"""The pictures of the dials show what the code does."""

import functools
from xml.etree import ElementTree

import flax.linen as nn
import jax
import numpy as np

from vidlang.models.dual_encoder import Model
from vidlang.ops.dials import Dials
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


def test_pruned_tokens_are_pale_and_the_others_as_they_were() -> None:
    transformer = {"layers": 3, "width": 16, "heads": 2, "mlp": 16, "dtype": "float32"}
    model = Model(
        video={"transformer": transformer, "tubelet": (2, 4, 4), "pool": "cls"},
        text={"vocab": 8, "max_length": 4, "transformer": transformer, "pool": "mean"},
        embed=4,
        temperature={"init": 0.07, "max_scale": 100.0, "learnable": True},
    )
    video = np.random.default_rng(0).integers(0, 120, (4, 8, 12, 3)).astype(np.uint8)  # 2 x 2 x 3 tokens
    init = functools.partial(model.init, train=False)
    params = jax.jit(lambda key: nn.unbox(init(key, video[None], np.ones((1, 4), np.int32)))["params"])
    picture = dial_figures.pruned_tokens(model, params := params(jax.random.key(0)), video, ((0, 0.5), (1, 0.5)))
    assert picture.shape == (3 * 12, 4 * 16, 3)
    strips = picture.reshape(3, 12, 4, 16, 3)[:, :8, :, :12].swapaxes(1, 2)
    np.testing.assert_array_equal(strips[0], video)
    as_before = (strips == video).all(-1)
    np.testing.assert_allclose(as_before.mean((1, 2, 3)), [1, 6 / 12, 3 / 12])
    encode = functools.partial(model.apply, {"params": params}, video[None])
    kept = encode(method=lambda m, v: m.video_encoder(v, train=False, dials=Dials(keep=((0, 0.5),))).kept_BM)
    seen = np.isin(np.arange(12), kept[0]).reshape(2, 2, 3).repeat(2, 0).repeat(4, 1).repeat(4, 2)
    np.testing.assert_array_equal(as_before[1], seen)
