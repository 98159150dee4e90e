"""The MP4 index agrees with a full demuxer, and no damage makes it hang, crash or fill the memory."""

import io
import struct
import time
import tracemalloc

import av
import numpy as np
import pytest

from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.mp4 import BrokenVideo, NotIndexed, boxes, read_index


@pytest.fixture(scope="module")
def mp4():
    rng = np.random.default_rng(0)
    frames = (rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(50))
    return encode_mp4(frames, fps=10, settings=EncodeSettings(keyint=12, preset="veryfast"))


def find(mp4, *path):
    """First byte of the body and the end of a nested box."""
    start, end = 0, len(mp4)
    for wanted in path:
        start, end = next((first, last) for kind, first, last in boxes(memoryview(mp4), start, end) if kind == wanted)
    return start, end


def table(mp4, name):
    return find(mp4, b"moov", b"trak", b"mdia", b"minf", b"stbl", name)


def patched(mp4, place, new):
    return mp4[:place] + new + mp4[place + len(new) :]


def test_index_agrees_with_the_demuxer(mp4):
    index = read_index(mp4)
    with av.open(io.BytesIO(mp4)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [bytes(packet) for packet in packets] == [
        mp4[offset : offset + size] for offset, size in zip(index.offsets, index.sizes, strict=True)
    ]
    order = np.argsort([packet.pts for packet in packets])
    np.testing.assert_array_equal(index.samples, order)
    np.testing.assert_array_equal(index.ranks[index.samples], np.arange(50))
    np.testing.assert_array_equal(index.keys, [i for i, packet in enumerate(packets) if packet.is_keyframe])
    assert (index.width, index.height, index.rotation) == (64, 48, 0)
    assert index.seconds == pytest.approx(5.0)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.5, 0.9, 0.99, 1 - 1e-9])
def test_truncation_is_one_sentence(mp4, share):
    with pytest.raises(BrokenVideo, match="empty|truncated"):
        read_index(mp4[: int(share * len(mp4))] if share else b"")


@pytest.mark.parametrize("keep", [9, 16, 40])
def test_truncation_within_the_first_boxes(mp4, keep):
    with pytest.raises((BrokenVideo, NotIndexed)):
        read_index(mp4[:keep])


@pytest.mark.parametrize("garbage", [b"\0" * 1000, b"not a video at all, but long enough", bytes(range(256)) * 4])
def test_garbage_is_left_to_the_container(garbage):
    with pytest.raises(NotIndexed, match="not an MP4"):
        read_index(garbage)


@pytest.mark.parametrize(
    "name, header",
    [(b"stsz", 8), (b"stts", 4), (b"ctts", 4), (b"stsc", 4), (b"stco", 4), (b"stss", 4)],
)
def test_claimed_counts_are_checked_before_anything_is_allocated(mp4, name, header):
    start, _ = table(mp4, name)
    for count in (2**32 - 1, 2**31, 10**6, 51):
        broken = patched(mp4, start + header, struct.pack(">I", count))
        tracemalloc.start()
        began = time.perf_counter()
        with pytest.raises((BrokenVideo, NotIndexed)):
            read_index(broken)
        assert time.perf_counter() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


def test_runs_that_claim_billions_are_refused(mp4):
    for name, place in ((b"stts", 8), (b"ctts", 8), (b"stsc", 12)):
        start, _ = table(mp4, name)
        with pytest.raises(BrokenVideo, match="index is damaged"):
            read_index(patched(mp4, start + place, struct.pack(">I", 2**32 - 1)))
    start, _ = table(mp4, b"stsz")
    with pytest.raises(BrokenVideo, match=f"{2**32 - 1} samples of 7 bytes"):
        read_index(patched(mp4, start + 4, struct.pack(">2I", 7, 2**32 - 1)))


def test_offsets_outside_the_file_are_refused(mp4):
    start, _ = table(mp4, b"stco")
    for offset in (2**32 - 1, len(mp4) - 5):
        with pytest.raises(BrokenVideo, match="truncated"):
            read_index(patched(mp4, start + 8, struct.pack(">I", offset)))


def test_noise_in_the_header_is_bounded(mp4):
    rng = np.random.default_rng(0)
    start, end = find(mp4, b"moov")
    outcomes = {"fine": 0, "refused": 0}
    tracemalloc.start()
    for _ in range(400):
        noisy = bytearray(mp4)
        for place in rng.integers(start, end, rng.integers(1, 20)):
            noisy[place] = rng.integers(256)
        began = time.perf_counter()
        try:
            index = read_index(bytes(noisy))
            assert (index.offsets >= 0).all() and (index.offsets + index.sizes <= len(noisy)).all()
            outcomes["fine"] += 1
        except (BrokenVideo, NotIndexed):
            outcomes["refused"] += 1
        assert time.perf_counter() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert min(outcomes.values()) > 20, outcomes


def test_edit_list_that_hides_frames_is_left_to_the_container(mp4):
    start, _ = find(mp4, b"moov", b"trak", b"edts", b"elst")
    duration, begin = struct.unpack_from(">2I", mp4, start + 8)
    read_index(patched(mp4, start + 8, struct.pack(">I", duration + 100)))
    for edit in ((duration, begin + 3000), (duration // 2, begin)):
        with pytest.raises(NotIndexed, match="edit list hides frames"):
            read_index(patched(mp4, start + 8, struct.pack(">2I", *edit)))


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_rotation_is_read_as_the_container_reads_it(mp4, quarter):
    start, _ = find(mp4, b"moov", b"trak", b"tkhd")
    one = 0x10000
    matrix = [(one, 0, 0, 0, one), (0, one, 0, -one, 0), (-one, 0, 0, 0, -one), (0, -one, 0, one, 0)][quarter]
    turned = patched(mp4, start + 40, struct.pack(">5i", *matrix))
    with av.open(io.BytesIO(turned)) as container:
        expected = next(container.decode(video=0)).rotation
    assert read_index(turned).rotation == expected // 90 % 4


def test_other_kinds_are_named():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(NotIndexed, match="fragmented"):
        read_index(file.getvalue())
