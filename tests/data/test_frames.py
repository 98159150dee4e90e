"""Times lie in the clip, in order, one in each part, and depend on nothing but the generator."""

import numpy as np
import pytest

from vidlang.data.frames import choose_times


@pytest.mark.parametrize("start, end, count", [(0.0, 1.0, 1), (12.34, 13.9, 4), (100.0, 400.0, 256), (5.0, 5.001, 16)])
def test_segments_draw_once_in_each_part(start, end, count):
    for seed in range(50):
        times_T = choose_times(np.random.default_rng(seed), start, end, count, name="segments")
        parts = np.floor((times_T - start) / ((end - start) / count) + 1e-9)
        assert times_T.dtype == np.float64 and (np.diff(times_T) > 0).all()
        np.testing.assert_array_equal(parts, np.arange(count))


def test_segments_are_uniform_within_their_part():
    rng = np.random.default_rng(0)
    draws = np.stack([choose_times(rng, 2.0, 6.0, 4, name="segments") for _ in range(4000)]) - 2.0
    np.testing.assert_allclose(draws.mean(0), [0.5, 1.5, 2.5, 3.5], atol=0.02)
    np.testing.assert_allclose(draws.std(0), 1 / np.sqrt(12), atol=0.01)


@pytest.mark.parametrize("name", ["segments", "middle", "fps"])
def test_same_generator_same_times_and_never_the_end(name):
    class Last:
        """A generator whose draws are the largest there are."""

        def random(self, count):
            return np.full(count, np.nextafter(1.0, 0.0))

        def uniform(self, low, high):
            return high

    for end in (1e-9, 0.1, 1 / 3, 1e5):
        assert (choose_times(Last(), 0.0, end, 3, name=name) < end).all()
    one, other = (choose_times(np.random.default_rng(3), 1.0, 9.0, 8, name=name) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_middle_of_parts():
    np.testing.assert_allclose(choose_times(None, 10.0, 14.0, 4, name="middle"), [10.5, 11.5, 12.5, 13.5])


def test_fps_in_a_window():
    np.testing.assert_allclose(choose_times(None, 4.0, 100.0, 3, name="fps", rate=2.0), [4.25, 4.75, 5.25])
    starts = [choose_times(np.random.default_rng(s), 4.0, 10.0, 3, name="fps", rate=1.0)[0] for s in range(300)]
    assert 4.5 <= min(starts) < 4.6 and 7.4 < max(starts) <= 7.5


def test_fps_holds_the_last_moment_of_a_short_clip():
    times_T = choose_times(np.random.default_rng(0), 0.0, 2.0, 5, name="fps", rate=1.0)
    np.testing.assert_allclose(times_T, [0.5, 1.5, 2.0, 2.0, 2.0])
    assert (times_T < 2.0).all()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(name="segment"), "did you mean 'segments'"),
        (dict(name="segments", rng=None), "need a random generator"),
        (dict(end=1.0), "0 <= start < end"),
        (dict(end=float("nan")), "0 <= start < end"),
        (dict(start=-1.0), "0 <= start < end"),
        (dict(count=0), "at least one frame"),
        (dict(name="fps", rate=0), "rate above 0"),
        (dict(name="fps", fps=3), "unknown key 'fps'"),
    ],
)
def test_mistakes_have_a_sentence(arguments, sentence):
    valid = dict(rng=np.random.default_rng(0), start=1.0, end=2.0, count=4, name="segments")
    with pytest.raises(ValueError, match=sentence):
        choose_times(**{**valid, **arguments})
