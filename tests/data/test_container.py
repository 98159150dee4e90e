"""Any video PyAV can read comes whole, upright, in order and with its own clock."""

import io
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from vidlang.data.crops import CropBox
from vidlang.data.decode import BrokenVideo, decode, iterate_frames, probe
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.mp4 import boxes

HEIGHT, WIDTH, COUNT = 64, 96, 40
FULL = CropBox(0, 0, HEIGHT, WIDTH)
X264 = {"preset": "veryfast", "crf": "10"}


def shade(number, height=HEIGHT, width=WIDTH):
    """A frame whose lower right says its number as a grey level, with corners that tell which way is up."""
    frame_HWC = np.full((height, width, 3), 20 + 5 * number, np.uint8)
    frame_HWC[:24, :24] = (200, 40, 40)
    frame_HWC[:24, -24:] = (40, 40, 200)
    return frame_HWC


def numbers(video_THWC):
    return np.round((video_THWC[:, 40:56, 40:80].mean((1, 2, 3)) - 20) / 5).astype(int)


def encode_with(options, pix_fmt="yuv420p", codec="libx264", container="mp4", pts=None, flags=None, size=None):
    """A video of shades by any encoder into any container."""
    file, size = io.BytesIO(), size or (HEIGHT, WIDTH)
    with av.open(file, "w", format=container, options=flags or {}) as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(shade(number, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (number if pts is None else pts[number]), Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def house():
    return encode_mp4(map(shade, range(COUNT)), fps=10, settings=EncodeSettings(crf=10))


@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("fragmented", dict(options=X264, flags={"movflags": "frag_keyframe+empty_moov"})),
        ("not an MP4", dict(options=X264, container="matroska")),
        ("mp4v", dict(options={"qmax": "2", "bf": "2"}, codec="mpeg4")),
        ("not an MP4", dict(options={"crf": "20"}, codec="libvpx-vp9", container="webm")),
    ],
)
def test_other_videos_decode_in_order_with_one_warning(kind, arguments):
    video = encode_with(**arguments)
    frames_T = np.array([39, 0, 7, 33, 7])
    with pytest.warns(UserWarning, match=f"from its start, because .*{kind}") as warned:
        got = decode(video, frames_T, FULL, (HEIGHT, WIDTH))
    assert len(warned) == 1
    np.testing.assert_array_equal(numbers(got), frames_T)
    info = probe(video)
    assert (info.frames, info.width, info.height) == (COUNT, WIDTH, HEIGHT)
    assert info.fps == pytest.approx(10, rel=0.01) and info.duration == pytest.approx(4, rel=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BrokenVideo, match="frame 40 was asked for"):
            decode(video, np.array([COUNT]), FULL, (30, 20))


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_rotated_video_comes_upright(quarter, house, tmp_path):
    start, end = 0, len(house)
    for wanted in (b"moov", b"trak", b"tkhd"):
        start, end = next((a, b) for kind, a, b in boxes(memoryview(house), start, end) if kind == wanted)
    one = 0x10000
    matrix = [None, (0, one, 0, -one, 0), (-one, 0, 0, 0, -one), (0, -one, 0, one, 0)][quarter]
    turned = house[: start + 40] + struct.pack(">5i", *matrix) + house[start + 60 :]
    clockwise = quarter  # what these matrices ask a player for
    info = probe(turned)
    assert (info.height, info.width) == ((HEIGHT, WIDTH), (WIDTH, HEIGHT))[quarter % 2]
    plain = decode(house, np.array([9, 30]), FULL, (HEIGHT, WIDTH))
    upright = np.rot90(plain, -clockwise, axes=(1, 2))
    whole = CropBox(0, 0, info.height, info.width)
    np.testing.assert_array_equal(decode(turned, np.array([9, 30]), whole, (info.height, info.width)), upright)
    crop = CropBox(6, 10, 40, 50)
    # At its border a crop knows no colour beyond itself.
    inner = decode(turned, np.array([9, 30]), crop, (40, 50))[:, 2:-2, 2:-2]
    np.testing.assert_array_equal(inner, upright[:, 8:44, 12:58])
    path = tmp_path / "turned.mp4"
    path.write_bytes(turned)
    frames = [frame for frame, _ in iterate_frames(path)]
    assert frames[0].shape == (info.height, info.width, 3)
    assert np.abs(frames[9].astype(int) - upright[0]).mean() < 3


def test_iterate_frames_gives_every_frame_and_its_time(tmp_path):
    path = tmp_path / "a.mkv"
    path.write_bytes(encode_with(X264, container="matroska"))
    frames, seconds = zip(*iterate_frames(path), strict=True)
    np.testing.assert_array_equal(numbers(np.stack(frames)), np.arange(COUNT))
    np.testing.assert_allclose(seconds, np.arange(COUNT) / 10, atol=1e-3)


def test_iterate_frames_shrinks_but_never_enlarges(house, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(house)
    for short_side, size in ((32, (32, 48)), (30, (30, 44)), (64, (64, 96)), (288, (64, 96))):
        assert next(iterate_frames(path, short_side))[0].shape == (*size, 3)
    odd = tmp_path / "odd.mp4"
    odd.write_bytes(encode_with(X264, pix_fmt="yuv444p", size=(67, 99)))
    assert next(iterate_frames(odd, 288))[0].shape == (66, 98, 3)
    assert next(iterate_frames(odd))[0].shape == (67, 99, 3)


def test_avi_with_b_frames_keeps_its_clock(tmp_path):
    path = tmp_path / "a.avi"
    path.write_bytes(encode_with({"qmax": "2", "bf": "2"}, codec="mpeg4", container="avi"))
    frames, seconds = zip(*iterate_frames(path), strict=True)
    np.testing.assert_array_equal(numbers(np.stack(frames)), np.arange(COUNT))
    np.testing.assert_allclose(seconds, np.arange(COUNT) / 10, atol=1e-6)


def test_a_jump_of_the_clock_is_told(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_with(X264, pts=[n + (100_000 if n > 30 else 0) for n in range(COUNT)]))
    with pytest.raises(BrokenVideo, match="clock jumps by 10000 s at frame 31"):
        list(iterate_frames(path))


def clocked(path, seconds, container="matroska"):
    """A video of flat frames that come at these seconds."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.height = stream.width = 32
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(shade(number % 40, 32, 32), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(10 * second), Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_a_clock_that_makes_hours_of_kilobytes_is_told_at_once(container, tmp_path):
    got = []
    with pytest.raises(BrokenVideo, match="its clock is damaged: 3 frames in a file of [0-9]+ bytes last 1180 s"):
        got.extend(second for _, second in iterate_frames(clocked(tmp_path / "a", 590.0 * np.arange(20), container)))
    assert got == [0, 590]
    # Not too many seconds a frame, but more than such small frames can be meant for.
    with pytest.raises(BrokenVideo, match="its clock is damaged: .* last [3-5][0-9]{3} s"):
        list(iterate_frames(clocked(tmp_path / "b", 50.0 * np.arange(400), container)))


STILLS = {
    "a picture every ten seconds": 10.0 * np.arange(360),
    "a slide a minute": 60.0 * np.arange(60),
    "still, talk, still, talk": np.cumsum([590, *[0.1] * 30, 590, *[0.1] * 30, 400, *[0.1] * 30]),
}


@pytest.mark.parametrize("stills", STILLS)
def test_long_stills_are_no_damage(stills, tmp_path):
    for container in ("matroska", "mp4"):
        path = clocked(tmp_path / container, STILLS[stills], container)
        seconds = [second for _, second in iterate_frames(path)]
        np.testing.assert_allclose(np.diff(seconds), np.diff(STILLS[stills]), atol=0.11)


@pytest.mark.parametrize("suffix, codec", [("wav", "pcm_s16le"), ("mp4", "aac"), ("mkv", "aac")])
def test_sound_only_is_told(suffix, codec, tmp_path):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(BrokenVideo, match="no video stream") as told:
        list(iterate_frames(path))
    assert told.value.kind == "unsupported"
