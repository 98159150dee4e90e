"""Rotary positions: what two tokens say to each other depends on how far apart they are, and on nothing else of where
they stand."""

import numpy as np
import pytest

from vidlang.ops.rotary import angles, check_scaling, rotate, speeds

SIZE = 8
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
RNG = np.random.default_rng(0)
QUERY, KEY = RNG.normal(size=(2, 1, 1, 3, SIZE)).astype(np.float32)


def at(x, place, scaling=None):
    """A vector of three heads, turned as at this place."""
    angle = angles(np.array([[place]]), speeds(SIZE, 100.0, scaling))
    return np.asarray(rotate(x, angle), np.float64)


def product(one, other):
    return np.einsum("BLAK,BLAK->A", one, other)


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 4.0}, LLAMA3], ids=str)
def test_products_depend_on_differences_of_places_only(scaling):
    def apart(query_place, key_place):
        return product(at(QUERY, query_place, scaling), at(KEY, key_place, scaling))

    for back in (0, 1, 5, 20):
        for place in (20, 21, 57):
            np.testing.assert_allclose(apart(place, place - back), apart(back, 0), rtol=1e-4, atol=1e-4)
    assert np.abs(apart(3, 0) - apart(0, 3)).max() > 0.1, "before and behind are told apart"
    assert np.abs(apart(3, 0) - apart(4, 0)).max() > 0.1


def test_turning_changes_no_length_and_the_first_place_turns_nothing():
    np.testing.assert_array_equal(at(QUERY, 0), QUERY)
    np.testing.assert_allclose(product(at(QUERY, 33), at(QUERY, 33)), product(QUERY, QUERY), rtol=1e-5)
    assert rotate(QUERY.astype("bfloat16"), angles(np.array([[3]]), speeds(SIZE, 100.0))).dtype == "bfloat16"


def test_half_and_half_are_pairs():
    """Channel k turns into channel k + K/2, at a speed that falls from one pair to the next."""
    one = np.zeros((1, 1, 1, SIZE), np.float32)
    one[..., 1] = 1.0
    found = at(one, 2)[0, 0, 0]
    speed = 100.0 ** (-2 / SIZE)
    expected = np.zeros(SIZE)
    expected[[1, 1 + SIZE // 2]] = np.cos(2 * speed), np.sin(2 * speed)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(speeds(SIZE, 100.0), [1, 100**-0.25, 0.1, 100**-0.75])


def test_stretching_slows_what_turns_seldom():
    np.testing.assert_allclose(speeds(SIZE, 100.0, {"type": "linear", "factor": 4.0}), speeds(SIZE, 100.0) / 4)
    # Within 64 places these pairs turn 10.2, 3.2, 1.02 and 0.32 times: more than 4 is fast, less than 1 slow.
    share = speeds(SIZE, 100.0, LLAMA3) / speeds(SIZE, 100.0)
    assert share[0] == 1 and share[3] == 1 / 8
    turns = 64 * speeds(SIZE, 100.0) / (2 * np.pi)
    for pair in (1, 2):
        fast = (turns[pair] - 1) / 3
        assert 1 / 8 < share[pair] < 1
        np.testing.assert_allclose(share[pair], fast + (1 - fast) / 8)


def test_unknown_stretching_is_refused():
    with pytest.raises(ValueError, match="rope_type 'dynamic'; it is one of linear, llama3"):
        check_scaling({"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ValueError, match="'linear' needs factor; it lacks factor"):
        speeds(SIZE, 100.0, {"type": "linear"})
