"""Damage is told in one sentence, in bounded time, and touches no later decode."""

import io
import time
import warnings

import av
import numpy as np
import pytest

from vidlang.data.crops import CropBox
from vidlang.data.decode import BrokenVideo, decode, iterate_frames, probe
from vidlang.data.encode import encode_mp4
from vidlang.data.mp4 import read_index

HEIGHT, WIDTH, COUNT = 64, 96, 60
FULL = CropBox(0, 0, HEIGHT, WIDTH)
FRAGMENTS = "frag_keyframe+empty_moov"


@pytest.fixture(scope="module")
def house():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = (
        [127 + 90 * np.sin((x * (c + 1) + y * (3 - c)) / 23 + t / (4 + c)) for c in range(3)] for t in range(COUNT)
    )
    return encode_mp4((np.stack(wave, -1).astype(np.uint8) for wave in waves), fps=10)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.95, 0.9999])
def test_truncation_is_told(house, share, tmp_path):
    broken = house[: int(share * len(house))]
    path = tmp_path / "broken.mp4"
    path.write_bytes(broken)
    for attempt in (
        lambda: decode(broken, np.array([0]), FULL, (30, 20)),
        lambda: probe(broken),
        lambda: probe(path),
        lambda: list(iterate_frames(path)),
    ):
        with pytest.raises(BrokenVideo) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"#EXTM3U\nfile:///etc/passwd\n" * 9, b"x", bytes(range(256)) * 40])
def test_garbage_is_told(garbage):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BrokenVideo, match="cannot be read as a video|no video stream|no frame"):
            decode(garbage, np.array([0]), FULL, (30, 20))


def test_damaged_frames_are_told_or_harmless_and_leave_no_trace(house):
    """Bit flips anywhere: a result or one sentence, in bounded time, and the next decode is untouched."""
    rng = np.random.default_rng(0)
    frames_T = np.array([5, 20, 41])
    expected = decode(house, frames_T, FULL, (30, 20))
    told = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(120):
            broken = bytearray(house)
            for place in rng.integers(0, len(house), 12):
                broken[place] ^= 1 << rng.integers(8)
            began = time.perf_counter()
            try:
                decode(bytes(broken), frames_T, FULL, (30, 20))
            except ValueError:
                told += 1
            assert time.perf_counter() - began < 5
            np.testing.assert_array_equal(decode(house, frames_T, FULL, (30, 20)), expected)
    assert told > 60


def test_most_damage_within_frames_is_told(house):
    """By default libavcodec hides nearly all of it."""
    index = read_index(house)
    start, rng, told = int(index.offsets[0]), np.random.default_rng(0), 0
    for _ in range(60):
        broken = bytearray(house)
        broken[rng.integers(start, len(house))] ^= 1 << rng.integers(8)
        try:
            decode(bytes(broken), np.arange(COUNT), FULL, (HEIGHT, WIDTH))
        except BrokenVideo:
            told += 1
    assert told > 20


def test_kinds_sort_failures(house):
    """What is wrong is told by kind, so that a training can count it."""
    turned = bytearray(house)
    matrix = house.index(b"tkhd") + 4 + 40
    turned[matrix : matrix + 20] = np.array([46341, 46341, 0, -46341, 46341], ">i4").tobytes()  # by 45 degrees
    for broken, kind in (
        (b"", "empty"),
        (house[:4000], "truncated"),
        (house[: len(house) // 2], "truncated"),
        (house[: house.index(b"mdat") + 4] + bytes(len(house) - house.index(b"mdat") - 4), "damaged"),
        (house.replace(b"stsz", b"stsx"), "damaged"),
        (bytes(turned), "unsupported"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(BrokenVideo) as caught:
                decode(broken, np.array([0, 20]), FULL, (30, 20))
        assert caught.value.kind == kind, (kind, str(caught.value))


@pytest.mark.parametrize("container", [False, True])
def test_a_deadline_ends_decoding_between_two_packets(house, container, monkeypatch):
    """By random access and through the container, and the decoder serves on."""
    if container:
        house = fragmented(house)
    frames_T = np.arange(COUNT)
    clock, ticks = time.monotonic(), iter(range(10**6))
    monkeypatch.setattr("vidlang.data.failures.time.monotonic", lambda: clock + next(ticks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = decode(house, frames_T, FULL, (30, 20), deadline=clock + 10**5)
        assert next(ticks) > COUNT  # the clock was read for each packet
        with pytest.raises(BrokenVideo, match="longer than allowed") as caught:
            decode(house, frames_T, FULL, (30, 20), deadline=clock + next(ticks) + 20)
        assert caught.value.kind == "timeout"
        np.testing.assert_array_equal(decode(house, frames_T, FULL, (30, 20)), expected)


def fragmented(mp4):
    """The same frames in a fragmented MP4, which is read through the container."""
    file = io.BytesIO()
    with av.open(io.BytesIO(mp4)) as source, av.open(file, "w", format="mp4", options={"movflags": FRAGMENTS}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return file.getvalue()
