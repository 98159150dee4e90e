"""Schedules of widths: what samplers draw and how often, what presets mean, and what cannot be."""

import functools
import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.dials import Dials
from vidlang.ops.widths import PRESETS, SHARES, WidthSampler, fit, prefix, schedule


def drawn(count: int, layers: int, **options) -> np.ndarray:
    sampler = WidthSampler(**options)
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: sampler(key, layers).index_L))(keys))


def test_sequences_are_drawn_alike() -> None:
    """Of three layers and four widths there are C(6, 3) = 20 that never widen; each comes as often as the others."""
    counts = Counter(map(tuple, drawn(8000, 3, name="dec").tolist()))
    expected = set(itertools.combinations_with_replacement(range(4), 3))
    assert set(counts) == expected and len(expected) == math.comb(6, 3)
    assert max(abs(count / 8000 - 1 / 20) for count in counts.values()) < 0.012


def test_sequential_draws_each_width_from_those_left() -> None:
    counts = Counter(map(tuple, drawn(8000, 2, name="dec", draw="sequential").tolist()))
    for first, second in itertools.combinations_with_replacement(range(4), 2):
        assert abs(counts[first, second] / 8000 - 1 / 4 / (4 - first)) < 0.02


def test_sorted_draws_are_sorted_independent_ones() -> None:
    index_NL = drawn(4000, 2, name="dec", draw="sorted")
    assert (np.diff(index_NL, axis=1) >= 0).all()
    assert abs((index_NL[:, 0] == index_NL[:, 1]).mean() - 1 / 4) < 0.03


@pytest.mark.parametrize("draw", ["sequences", "sequential", "sorted"])
def test_dec_never_widens_and_inc_never_narrows(draw: str) -> None:
    assert (np.diff(drawn(50, 12, name="dec", draw=draw), axis=1) >= 0).all()
    assert (np.diff(drawn(50, 12, name="inc", draw=draw), axis=1) <= 0).all()


def test_mean_width_falls_evenly_with_depth() -> None:
    """Of twelve layers, as counted over all 455 sequences."""
    sequences = list(itertools.combinations_with_replacement(range(4), 12))
    exact = 768 * np.array(SHARES)[np.array(sequences)].mean(0)
    np.testing.assert_allclose(exact[[0, -1]], [724, 236], atol=1)
    found = 768 * np.array(SHARES)[drawn(4000, 12, name="dec")].mean(0)
    np.testing.assert_allclose(found, exact, atol=15)


def test_free_layers_know_nothing_of_each_other() -> None:
    index_NL = drawn(4000, 3, name="free")
    np.testing.assert_allclose([(index_NL == k).mean() for k in range(4)], 0.25, atol=0.02)
    assert abs(np.corrcoef(index_NL.T)[0, 1]) < 0.05


def test_full_steps_have_their_share() -> None:
    whole = (drawn(4000, 12, name="dec", full=0.3) == 0).all(1).mean()
    assert abs(whole - (0.3 + 0.7 / 455)) < 0.03


def test_the_same_key_gives_the_same_schedule() -> None:
    sampler = WidthSampler("dec")
    one, same, other = (sampler(jax.random.key(seed), 12) for seed in (3, 3, 4))
    assert (one.index_L == same.index_L).all() and (one.index_L != other.index_L).any()
    assert abs(float(one.mean_share()) - np.array(SHARES)[np.asarray(one.index_L)].mean()) < 1e-6


def test_presets_are_those_of_the_table() -> None:
    table = functools.partial(schedule, layers=12, width=768, head_size=64)
    for d in (768, 576, 384, 192):
        assert table(f"d-{d}") == (d,) * 12
    assert table("d-dec") == (768,) * 3 + (576,) * 3 + (384,) * 3 + (192,) * 3
    assert table("d-dec-high") == (768,) * 4 + (576,) * 4 + (384,) * 4
    assert table("d-dec-low") == (576,) * 4 + (384,) * 4 + (192,) * 4
    for name in ("d-inc", "d-inc-high", "d-inc-low"):
        assert table(name) == table(name.replace("inc", "dec"))[::-1]
    assert schedule("d-dec", layers=4, width=64, head_size=16) == (64, 48, 32, 16)
    assert len(PRESETS) == 10


def test_prefix_takes_the_first_of_each_group() -> None:
    x = jnp.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(prefix(x, 1, 6), x[:, :6])
    np.testing.assert_array_equal(prefix(x, -1, 6, groups=3), x[:, [0, 1, 4, 5, 8, 9]])
    assert prefix(x, 1, 12, groups=3) is x


def test_fit_drops_and_fills_with_zeros() -> None:
    x = jnp.ones((2, 4))
    assert fit(x, 4) is x and fit(x, 2).shape == (2, 2)
    np.testing.assert_array_equal(fit(x, 6), [[1, 1, 1, 1, 0, 0]] * 2)


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ("d-decc", "unknown preset of widths 'd-decc' .did you mean 'd-dec'"),
        ((64, 64), "has 2 entries for 4 layers"),
        ((64, 64, 40, 16), "holds 40; a width is a multiple of the head size 16, from 16 to 64"),
        ((64, 64, 80, 16), "holds 80"),
        ((64, 64, 64, 0), "holds 0"),
    ],
)
def test_impossible_schedules_are_refused(widths, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule(widths, layers=4, width=64, head_size=16)


def test_a_share_that_is_no_whole_number_of_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="0.75 of the width 64 is 48, no multiple of the head size 32"):
        schedule("d-dec", layers=4, width=64, head_size=32)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "decc"}, "widths.name is 'decc' .did you mean 'dec'"),
        ({"name": "dec", "draw": "even"}, "widths.draw is 'even'"),
        ({"name": "dec", "shares": (0.5, 0.25)}, "must fall from 1.0 on"),
        ({"name": "dec", "full": 2.0}, "full is a share of the steps"),
        ({"name": "dec", "share": 1}, "unknown key 'share'"),
        ({}, "widths.name is None"),
        (3.0, "the dial widths is None, a preset's name"),
    ],
)
def test_impossible_samplers_are_refused(section, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Dials(widths=section)
