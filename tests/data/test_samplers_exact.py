"""Every sampler shows exactly the frames it names: numbers drawn into the pixels are read back through a store."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from vidlang.data.crops import choose_crop
from vidlang.data.cutting.video import PrecutSettings, cut_video
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.frames import TIMES, choose_times
from vidlang.data.stores.writer import write_store

HEIGHT, WIDTH, COUNT = 48, 64, 175
# B-frames always, so that the order of decoding is not the order of showing.
ENCODE = EncodeSettings(crf=12, preset="veryfast", b_frames=3, fixed_b=True)
RULES = [
    dict(name="segments"),
    dict(name="middle"),
    dict(name="whole"),
    dict(name="fps", rate=9.0),
    dict(name="stride", step=3),
    dict(name="groups", groups=2, rate=30.0),
]


def picture(number):
    """The number in binary, one stripe a digit."""
    stripes = np.array([255 * (number >> digit & 1) for digit in range(8)], np.uint8)
    return np.broadcast_to(np.repeat(stripes, WIDTH // 8)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def numbers(video_THWC):
    digits = np.asarray(video_THWC)[:, HEIGHT // 2, WIDTH // 16 :: WIDTH // 8].mean(-1) > 127
    return (digits << np.arange(8)).sum(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A source of 29.97 frames a second as a store of 30 in chunks of two seconds; the last chunk is short."""
    folder = tmp_path_factory.mktemp("numbers")
    frames = (picture(number) for number in range(COUNT))
    (folder / "v.mp4").write_bytes(encode_mp4(frames, fps=Fraction(30000, 1001), settings=ENCODE))
    settings = PrecutSettings(chunk_seconds=2, fps=30, short_side=HEIGHT, encode=ENCODE)
    return write_store(folder / "store", [cut_video(folder / "v.mp4", "v", settings)], settings)


@pytest.fixture(scope="module")
def shown(store):
    """The number in every frame of the store, by plain decoding of whole chunks."""
    chunks = range(len(store.chunk_frames("v")))
    files = [av.open(io.BytesIO(bytes(store.read("v", chunk)))) for chunk in chunks]
    return np.concatenate(
        [numbers([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]) for file in files]
    )


def test_the_store_shows_the_sources_frames_at_their_times(shown):
    times = np.arange(len(shown)) / 30
    assert len(shown) == round(COUNT * 1.001) and (np.abs(shown - times * 30000 / 1001) <= 1).all()


def test_every_rule_is_tried_here():
    assert {rule["name"] for rule in RULES} == set(TIMES)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("start, end", [(0.0, 1.0), (1.61, 2.4), (0.2, 5.8), (5.55, 99.0), (1.0, 1.5), (2.0, 2.02)])
def test_samplers_get_the_frames_they_name(store, shown, rule, start, end):
    info = store.info("v")
    end = min(end, info.duration)
    crop = choose_crop(None, info.height, info.width, name="full")
    rngs = [(np.random.default_rng(seed), 0, 1) for seed in range(4)]
    views = [] if rule["name"] == "segments" else [(None, 0, 1), (None, 2, 3)]
    for rng, view, count in rngs + views:
        known = dict(view=view, views=count, duration=info.duration, source_fps=info.fps)
        times_T = choose_times(rng, start, end, 8, **known, **rule)
        found_T = numbers(store.decode("v", times_T, crop, (HEIGHT, WIDTH)))
        np.testing.assert_array_equal(found_T, shown[np.floor(times_T * 30 + 1e-6).astype(int)])
        if rule["name"] != "whole":  # nothing of what comes before or after the clip
            inside = shown[int(np.floor(start * 30 + 1e-6)) : int(np.ceil(end * 30 - 1e-6))]
            assert np.isin(found_T, inside).all()


def test_stride_gets_every_third_frame_of_the_store(store, shown):
    info = store.info("v")
    crop = choose_crop(None, info.height, info.width, name="full")
    for view, first in enumerate((0, 51, 102)):  # 50 of every third frame, of which 17 are two views apart
        known = dict(view=view, views=3, source_fps=info.fps)
        times_T = choose_times(None, 0.0, 150 / 30, 16, name="stride", step=3, **known)
        expected = shown[first : first + 48 : 3]
        np.testing.assert_array_equal(numbers(store.decode("v", times_T, crop, (HEIGHT, WIDTH))), expected)
