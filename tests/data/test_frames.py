"""Times lie in the clip, in order, cover it evenly, and depend on nothing but the generator and the arguments."""

import numpy as np
import pytest

from vidlang.data.frames import TIMES, choose_times

FPS = 30.0
RULES = [
    dict(name="segments"),
    dict(name="segments", jitter=0.3),
    dict(name="middle"),
    dict(name="whole", duration=500.0),
    dict(name="fps", rate=2.0),
    dict(name="fps", rate=0.7, anchor="center", past="spread"),
    dict(name="stride", step=3, source_fps=29.97),
    dict(name="groups", groups=4),
    dict(name="groups", groups=2, rate=5.0),
]
IN_TESTING = [rule for rule in RULES if rule["name"] != "segments"]
CLIPS = [(0.0, 1.0, 4), (12.34, 13.9, 8), (100.0, 400.0, 256), (5.0, 5.001, 16), (7.0, 8e4, 4)]


def frames(times_T):
    """What a store at 30 frames a second shows at these times."""
    return np.floor(np.asarray(times_T) * FPS + 1e-6).astype(int)


def draws(count, start, end, frame_count, **rule):
    rng = np.random.default_rng(0)
    return np.stack([choose_times(rng, start, end, frame_count, **rule) for _ in range(count)])


def check_uniform(values, low, high, bins=20):
    """Chi-square against the uniform law: beyond this bound once in a million seeds, and the seed is fixed."""
    counts, _ = np.histogram(values, bins=bins, range=(low, high))
    assert counts.sum() == len(values)
    expected = len(values) / bins
    assert ((counts - expected) ** 2 / expected).sum() < bins - 1 + 6.5 * np.sqrt(2 * (bins - 1))


def test_every_rule_is_tried_here():
    assert {rule["name"] for rule in RULES} == set(TIMES)


@pytest.mark.parametrize("start, end, count", CLIPS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_times_are_in_the_clip_and_in_order(rule, start, end, count):
    low, high = (0.0, rule["duration"]) if rule["name"] == "whole" else (start, end)
    for seed in range(10):
        times_T = choose_times(np.random.default_rng(seed), start, end, count, **rule)
        again_T = choose_times(np.random.default_rng(seed), start, end, count, **rule)
        assert times_T.dtype == np.float64 and times_T.shape == (count,)
        assert (np.diff(times_T) >= 0).all() and low <= times_T[0] and times_T[-1] < high
        np.testing.assert_array_equal(times_T, again_T)


@pytest.mark.parametrize("start, end, count", CLIPS)
@pytest.mark.parametrize("rule", IN_TESTING, ids=str)
def test_testing_draws_nothing_and_views_stay_in_the_clip(rule, start, end, count):
    low, high = (0.0, rule["duration"]) if rule["name"] == "whole" else (start, end)
    for view in range(5):
        times_T, again_T = (choose_times(None, start, end, count, view=view, views=5, **rule) for _ in range(2))
        assert (np.diff(times_T) >= 0).all() and low <= times_T[0] and times_T[-1] < high
        np.testing.assert_array_equal(times_T, again_T)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_end_is_never_reached(rule):
    class Last:
        """A generator whose draws are the largest there are."""

        def random(self, count):
            return np.full(count, np.nextafter(1.0, 0.0))

        def uniform(self, low, high, count=None):
            return high if count is None else np.full(count, high)

        def integers(self, high):
            return high - 1

    for end in (1e-9, 0.1, 1 / 3, 1e5):
        rule = rule | (dict(duration=end) if rule["name"] == "whole" else {})
        assert (choose_times(Last(), 0.0, end, 4, **rule) < end).all()


@pytest.mark.parametrize("rule", [dict(name="segments"), dict(name="whole", duration=6.0)], ids=str)
def test_segments_draw_uniformly_in_each_part(rule):
    start = 0.0 if rule["name"] == "whole" else 2.0
    times = draws(4000, start if start else 1.0, 6.0 if start else 2.0, 4, **rule) - start
    length = (6.0 - start) / 4
    np.testing.assert_array_equal(np.floor(times / length), np.tile(np.arange(4), (4000, 1)))
    for part_N, k in zip(times.T, range(4), strict=True):
        check_uniform(part_N, k * length, (k + 1) * length)


def test_whole_ignores_the_clip_and_is_spread_over_the_video_in_testing():
    times_T = choose_times(None, 5.0, 6.0, 4, duration=80.0, name="whole")
    np.testing.assert_allclose(times_T, [10, 30, 50, 70])


def test_middle_of_parts():
    np.testing.assert_allclose(choose_times(None, 10.0, 14.0, 4, name="middle"), [10.5, 11.5, 12.5, 13.5])


@pytest.mark.parametrize("rule", [dict(name="middle"), dict(name="groups", groups=2)], ids=str)
def test_views_of_parts_together_are_one_denser_view(rule):
    views = [choose_times(None, 3.0, 9.0, 4, view=view, views=5, **rule) for view in range(5)]
    np.testing.assert_allclose(np.sort(np.ravel(views)), choose_times(None, 3.0, 9.0, 20, name="middle"))


def test_fps_in_a_window():
    fps = dict(name="fps", rate=2.0)
    np.testing.assert_allclose(choose_times(None, 4.0, 100.0, 3, **fps), [4.25, 4.75, 5.25])
    np.testing.assert_allclose(choose_times(None, 4.0, 7.5, 3, anchor="center", **fps), [5.25, 5.75, 6.25])
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(choose_times(rng, 4.0, 100.0, 3, anchor="start", **fps), [4.25, 4.75, 5.25])
    times = draws(4000, 4.0, 10.0, 3, name="fps", rate=1.0)
    np.testing.assert_allclose(np.diff(times), 1.0)
    check_uniform(times[:, 0], 4.5, 7.5)


def test_fps_past_the_end_of_a_short_clip():
    for rng in (None, np.random.default_rng(0)):
        times_T = choose_times(rng, 0.0, 2.0, 5, name="fps", rate=1.0)
        np.testing.assert_allclose(times_T, [0.5, 1.5, 2.0, 2.0, 2.0], atol=1e-4)
        assert frames(times_T)[-1] == 59
        times_T = choose_times(rng, 0.0, 2.0, 5, name="fps", rate=1.0, past="spread")
        np.testing.assert_allclose(times_T, [0.2, 0.6, 1.0, 1.4, 1.8])


@pytest.mark.parametrize("count, seconds", [(16, 300.0), (128, 300.0), (256, 300.0)])
def test_fps_is_longvivits_one_frame_of_each_second_from_the_start(count, seconds):
    times_T = choose_times(None, 30.0, 30.0 + seconds, count, name="fps", rate=1.0)
    np.testing.assert_array_equal(np.floor(times_T - 30.0), np.arange(count))


@pytest.mark.parametrize("rule", [dict(name="fps", rate=4.0), dict(name="stride", step=8, source_fps=32.0)], ids=str)
def test_windows_of_views_go_from_end_to_end_and_leave_no_gap(rule):
    views = np.stack([choose_times(None, 10.0, 20.0, 8, view=view, views=5, **rule) for view in range(5)])
    np.testing.assert_allclose(np.diff(views), 0.25)
    starts = views[:, 0]
    np.testing.assert_allclose(np.diff(starts), (10 - 2) / 4)
    assert starts[0] - 10.0 < 0.25 and 20.0 - views[-1, -1] <= 0.25


def test_segments_are_avions():
    """Midpoints of T equal parts of the clip's frames, moved by up to half of (frames - 1) / T, cut to whole frames."""
    for seed in range(200):
        first, length, count = 90 + seed, 20 + seed, 4
        jitter_T = (np.random.default_rng(seed).random(count) - 0.5) * ((length - 1) / count)
        edges = np.linspace(first, first + length, count + 1)
        expected_T = ((edges[:-1] + edges[1:]) / 2 + jitter_T + 1e-6).astype(int)
        clip = (first / FPS, (first + length) / FPS, count)
        exact = choose_times(np.random.default_rng(seed), *clip, name="segments", jitter=1 - 1 / length)
        np.testing.assert_array_equal(frames(exact), expected_T)
        default = choose_times(np.random.default_rng(seed), *clip, name="segments")
        assert np.abs(frames(default) - expected_T).max() <= 1


def test_segments_and_middle_are_egovlps_up_to_a_frame():
    """Whole-numbered edges of T parts; in training any frame of a part but its last, in testing the middle one."""
    for seed in range(100):
        first, length, count = 60 + 3 * seed, 24 + seed, 4
        edges = np.linspace(first, first + length, count + 1).astype(int)
        clip = (first / FPS, (first + length) / FPS, count)
        middle_T = frames(choose_times(None, *clip, name="middle"))
        assert np.abs(middle_T - (edges[:-1] + edges[1:] - 1) // 2).max() <= 1
        shown_T = frames(choose_times(np.random.default_rng(seed), *clip, name="segments"))
        assert (shown_T >= edges[:-1]).all() and (shown_T <= edges[1:]).all()


def test_stride_is_videomaes_pretraining():
    """start + step * k, where start is any frame from which step * count frames fit, all as likely."""
    shown = frames(draws(6000, 2.0, 12.0, 16, name="stride", step=4, source_fps=FPS)) - 60
    np.testing.assert_array_equal(np.diff(shown), np.full((6000, 15), 4))
    starts = np.bincount(shown[:, 0])
    assert len(starts) == 300 - 64 + 1
    check_uniform(shown[:, 0], 0, 237, bins=79)


@pytest.mark.parametrize("source", [30, 64, 65, 67, 90, 300, 301])
@pytest.mark.parametrize("views", [2, 5])
def test_stride_is_videomaes_test(source, views):
    """Of every fourth frame of a video (the last one held to fill 16), runs of 16 at evenly spaced starts."""
    fourth = list(range(0, source, 4))
    fourth += [fourth[-1]] * (16 - len(fourth))
    for view in range(views):
        at = int(view * max((len(fourth) - 16) / (views - 1), 0))
        times_T = choose_times(
            None, 0.0, source / FPS, 16, view=view, views=views, name="stride", step=4, source_fps=FPS
        )
        shown_T, expected_T = frames(times_T), np.array(fourth[at : at + 16])
        # Past the end the last frame is held; VideoMAE holds the last of every fourth.
        held = expected_T == fourth[-1]
        np.testing.assert_array_equal(shown_T[~held], expected_T[~held])
        assert (np.abs(shown_T[held] - expected_T[held]) < 4).all()


@pytest.mark.parametrize("fps", [23.976, 29.97, 30.0, 60.0])
def test_stride_takes_the_stores_frames_and_starts_with_the_clips_first(fps):
    for first in (0, 7, 1234):
        clip = (first / fps, (first + 40) / fps, 10)
        shown_T = choose_times(None, *clip, source_fps=fps, name="stride", step=4) * fps
        np.testing.assert_allclose(shown_T, first + 4 * np.arange(10) + 0.5, atol=1e-6)
        stated_T = choose_times(None, *clip, source_fps=fps, name="stride", step=2, fps=fps / 2)
        np.testing.assert_allclose(np.diff(stated_T) * fps, 4)
    middle_T = choose_times(None, 0.0, 100 / fps, 10, source_fps=fps, name="stride", step=4)
    assert np.floor(middle_T * fps + 1e-6)[0] == 30
    short_T = choose_times(None, 0.0, 3 / fps, 8, source_fps=fps, name="stride", step=1)
    np.testing.assert_array_equal(np.floor(short_T * fps + 1e-6), [0, 1, 2, 2, 2, 2, 2, 2])


def test_groups_are_short_runs_one_in_each_part():
    times = draws(1000, 0.0, 160.0, 64, name="groups", groups=16, rate=2.0).reshape(1000, 16, 4)
    np.testing.assert_allclose(np.diff(times), 0.5)
    assert (np.floor(times / 10) == np.arange(16)[:, None]).all()
    for group in (0, 7, 15):
        check_uniform(times[:, group, 0] - 10 * group, 0.25, 8.25)
    assert abs(np.corrcoef(times[:, 3, 0], times[:, 4, 0])[0, 1]) < 0.1
    testing = choose_times(None, 0.0, 160.0, 64, name="groups", groups=16, rate=2.0).reshape(16, 4)
    np.testing.assert_allclose(testing[2], [24.25, 24.75, 25.25, 25.75])
    ends = [choose_times(None, 0.0, 160.0, 64, view=v, views=2, name="groups", groups=16, rate=2.0) for v in (0, 1)]
    np.testing.assert_allclose([ends[0][0], ends[1][-1]], [0.25, 159.75])


def test_groups_without_a_rate_are_frames_spread_over_the_clip():
    spread = choose_times(None, 4.0, 30.0, 64, name="groups", groups=16)
    np.testing.assert_allclose(spread, choose_times(None, 4.0, 30.0, 64, name="middle"))
    times_T = choose_times(np.random.default_rng(0), 0.0, 64.0, 64, name="groups", groups=16)
    np.testing.assert_array_equal(np.floor(times_T), np.arange(64))


def test_a_run_longer_than_its_part_stays_in_it():
    times = choose_times(np.random.default_rng(0), 0.0, 8.0, 16, name="groups", groups=4, rate=1.0).reshape(4, 4)
    np.testing.assert_array_equal(frames(times) // 60, np.arange(4)[:, None] * np.ones((1, 4)))
    np.testing.assert_allclose(times[1], [2.5, 3.5, 4.0, 4.0], atol=1e-4)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(name="segment"), "did you mean 'segments'"),
        (dict(name="segments", rng=None), "need a random generator"),
        (dict(name="segments", jitter=1.5), "0 <= jitter <= 1"),
        (dict(end=1.0), "0 <= start < end"),
        (dict(end=float("nan")), "0 <= start < end"),
        (dict(start=-1.0), "0 <= start < end"),
        (dict(count=0), "at least one frame"),
        (dict(view=3, views=3), "from 0 to views - 1"),
        (dict(view=1, views=3), "views are for testing"),
        (dict(duration=0.0), "duration of a video is above 0"),
        (dict(name="whole"), "need the video's duration"),
        (dict(name="fps", rate=0), "rate above 0"),
        (dict(name="fps", fps=3), "unknown key 'fps'"),
        (dict(name="fps", anchor="end"), "anchor .* one of random, start, center"),
        (dict(name="fps", past="loop"), "past .* one of hold, spread"),
        (dict(name="stride"), "source's frames a second"),
        (dict(name="stride", step=0, source_fps=30.0), "at least 1 frame"),
        (dict(name="stride", fps=0.0), "a fps above 0"),
        (dict(name="groups"), "lacks 'groups'"),
        (dict(name="groups", groups=3), "divides the frames, got 3 for 4"),
        (dict(name="groups", groups=2, rate=0.0), "rate above 0"),
    ],
)
def test_mistakes_have_a_sentence(arguments, sentence):
    valid = dict(rng=np.random.default_rng(0), start=1.0, end=2.0, count=4, name="segments")
    with pytest.raises(ValueError, match=sentence):
        choose_times(**{**valid, **arguments})
