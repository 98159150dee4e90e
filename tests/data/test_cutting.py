"""Any source becomes chunks of the store's rate and size in which every second is where it was."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from vidlang.data.crops import CropBox
from vidlang.data.cutting import video as cutting
from vidlang.data.cutting.video import PrecutSettings, cut_video, resample, verify
from vidlang.data.decode import BrokenVideo, decode, probe
from vidlang.data.encode import EncodeSettings, encode_mp4

HEIGHT, WIDTH = 32, 48
FAST = EncodeSettings(preset="ultrafast", crf=8)
SETTINGS = PrecutSettings(chunk_seconds=1.5, fps=8, short_side=32, encode=FAST)


def burnt(number):
    """A frame that carries its number in twelve blocks."""
    blocks = np.array([225 if number >> bit & 1 else 30 for bit in range(12)], np.uint8).reshape(2, 6)
    return np.repeat(blocks.repeat(16, 0).repeat(8, 1)[..., None], 3, -1)


def numbers(video_THWC):
    blocks = video_THWC.reshape(-1, 2, 16, 6, 8, 3)[:, :, 4:12, :, 2:6].mean((2, 4, 5)).reshape(-1, 12)
    return (blocks > 127) @ (1 << np.arange(12))


def source(path, count, fps=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mp4(map(burnt, range(count)), fps=fps, settings=FAST))
    return path


def timed_source(path, times, container="matroska"):
    """A video whose frame k is shown at times[k] seconds, to a millisecond."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "8"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(burnt(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    path.write_bytes(file.getvalue())
    return path


def shown(video):
    """The burnt numbers of all frames of a cut video."""
    whole = CropBox(0, 0, video.height, video.width)
    parts = [
        decode(mp4, np.arange(frames), whole, (HEIGHT, WIDTH))
        for mp4, frames in zip(video.chunks, video.chunk_frames, strict=True)
    ]
    return numbers(np.concatenate(parts))


def nearest(times, fps):
    """Independent reference: for each output time the source frame nearest to it, the earlier of two."""
    times = np.asarray(times) - times[0]
    period = times[-1] / (len(times) - 1)
    count = round((times[-1] + period) * fps)
    return [int(np.argmin(np.round(np.abs(times - k / fps), 5))) for k in range(count)]


@pytest.mark.parametrize("source_fps", [8, 24, 5, 30, Fraction(30000, 1001), Fraction(24000, 1001), 60])
def test_any_rate_becomes_the_stores_without_drift(source_fps, tmp_path):
    count = int(7 * source_fps)
    video = cut_video(source(tmp_path / "a.mp4", count, source_fps), "a", SETTINGS)
    np.testing.assert_array_equal(shown(video), nearest(np.arange(count) / float(source_fps), 8))


@pytest.mark.parametrize("start", [0.0, 10.0])
def test_rounded_and_irregular_clocks(start, tmp_path):
    regular = start + np.round(np.arange(200) / 30, 3)
    video = cut_video(timed_source(tmp_path / "a.mkv", regular), "a", PrecutSettings(2, 30, 32, FAST))
    np.testing.assert_array_equal(shown(video), np.arange(200))
    irregular = start + np.cumsum(np.random.default_rng(0).integers(10, 400, 60)) / 1000
    video = cut_video(timed_source(tmp_path / "b.mkv", irregular), "b", SETTINGS)
    np.testing.assert_array_equal(shown(video), nearest(irregular, 8))


def test_resample_of_one_frame_and_of_none():
    assert len(list(resample([(burnt(0), 3.0)], 30))) == 1
    assert list(resample([], 30)) == []


@pytest.mark.parametrize("count, expected", [(1, (1,)), (11, (11,)), (12, (12,)), (13, (12, 1)), (36, (12, 12, 12))])
def test_every_chunk_is_full_but_the_last_and_none_is_empty(count, expected, tmp_path):
    video = cut_video(source(tmp_path / "a.mp4", count), "a", SETTINGS)
    assert tuple(video.chunk_frames) == expected
    assert tuple(probe(chunk).frames for chunk in video.chunks) == expected
    np.testing.assert_array_equal(shown(video), np.arange(count))


def test_chunk_length_at_a_rational_rate():
    assert PrecutSettings(fps=Fraction(30000, 1001)).frames_per_chunk == 450
    assert PrecutSettings(fps=8).frames_per_chunk == 120


@pytest.mark.parametrize(
    "size, short_side, expected",
    [((96, 128), 48, (48, 64)), ((128, 96), 48, (64, 48)), ((90, 160), 48, (48, 86)), ((32, 48), 288, (32, 48))],
)
def test_short_side_shrinks_and_never_enlarges(size, short_side, expected, tmp_path):
    frames = [np.full((*size, 3), 100, np.uint8)] * 3
    (tmp_path / "a.mp4").write_bytes(encode_mp4(frames, fps=8, settings=FAST))
    video = cut_video(tmp_path / "a.mp4", "a", PrecutSettings(fps=8, short_side=short_side, encode=FAST))
    assert (video.height, video.width) == expected
    assert (probe(video.chunks[0]).height, probe(video.chunks[0]).width) == expected


NO_NUMBERS = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize(
    "options, sentence",
    [
        *((dict(fps=fps), "fps must be above 0 and at most 1000") for fps in (0, -1, 1001, 10**400, *NO_NUMBERS)),
        (dict(fps=Fraction(23976023976, 10**9)), "fps must be .* such as 30 or 30000/1001"),
        *((dict(chunk_seconds=s), "a chunk must last above 0 and at most 3600 s") for s in (0, 3601, *NO_NUMBERS)),
        (dict(chunk_seconds=3600, fps=1000), "a frame or more and at most 1000000"),
        (dict(chunk_seconds=0.001), "a chunk must hold a frame or more"),
        (dict(short_side=75), "an even number of pixels"),
    ],
)
def test_bad_settings_have_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PrecutSettings(**options)


def test_broken_source_is_told(tmp_path):
    whole = source(tmp_path / "a.mp4", 30).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[:-10])
    with pytest.raises(BrokenVideo, match="truncated"):
        cut_video(tmp_path / "a.mp4", "a", SETTINGS)


def test_a_chunk_that_is_not_what_went_in_is_told(tmp_path):
    """As a fault of the encoder or of the memory would make it."""
    mp4 = source(tmp_path / "a.mp4", 12).read_bytes()
    assert verify(mp4, 12, (HEIGHT, WIDTH, 3)).frames == 12
    for frames, shape in ((13, (HEIGHT, WIDTH, 3)), (12, (HEIGHT, WIDTH + 2, 3))):
        with pytest.raises(RuntimeError, match="was encoded, and decodes as"):
            verify(mp4, frames, shape)
    place = mp4.index(b"mdat") + 4
    with pytest.raises(BrokenVideo):
        verify(mp4[:place] + bytes(len(mp4) - place), 12, (HEIGHT, WIDTH, 3))


def test_every_chunk_is_verified(tmp_path, monkeypatch):
    """A chunk that an encoder cut short must not get into a store."""
    whole = cutting.encode_mp4
    monkeypatch.setattr(cutting, "encode_mp4", lambda frames, **options: whole(list(frames)[:-1], **options))
    with pytest.raises(RuntimeError, match="a chunk of 12 frames"):
        cut_video(source(tmp_path / "a.mp4", 20), "a", SETTINGS)
