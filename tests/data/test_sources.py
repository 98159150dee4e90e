"""What real files are like: each kind of source is cut rightly, or refused by name."""

import contextlib
import csv
import io
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.crops import CropBox
from vidlang.data.cutting.video import PrecutSettings, cut_video
from vidlang.data.decode import decode
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.failures import BrokenVideo
from vidlang.data.precut import precut

HEIGHT, WIDTH, COUNT, FPS = 64, 96, 45, 10
FAST = EncodeSettings(preset="ultrafast", crf=12)
SETTINGS = PrecutSettings(chunk_seconds=2, fps=FPS, short_side=64, encode=FAST)
CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"


def shade(number, height=HEIGHT, width=WIDTH):
    """A frame of which all but the upper left corner, which is black, says its number."""
    frame = np.full((height, width, 3), 30 + 4 * number, np.uint8)
    frame[: height // 3, : width // 3] = 0
    return frame


def film(codec, container, pix_fmt="yuv420p", size=(HEIGHT, WIDTH), options=None, start=0.0, sound=0.0, **more):
    """COUNT shades by any encoder in any container, with a clock that starts at `start` and seconds of sound."""
    path = more.get("path")
    file = str(path) if path else io.BytesIO()
    with av.open(file, "w", format=container, options=more.get("muxer", {})) as out:
        out.metadata["title"] = more.get("title", "")
        stream = out.add_stream(codec, rate=FPS, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = 10
        tone = out.add_stream("libopus", rate=48000, layout="mono") if sound else None
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(shade(number, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number + round(start * FPS), Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        for place in range(int(sound * 50)):
            beep = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), layout="mono")
            beep.sample_rate, beep.pts, beep.time_base = 48000, place * 960, Fraction(1, 48000)
            out.mux(tone.encode(beep))
        if tone:
            out.mux(tone.encode(None))
    return path.read_bytes() if path else file.getvalue()


def shown(video):
    """The numbers of all frames of a cut video, read from their lower right."""
    whole, size = CropBox(0, 0, video.height, video.width), (video.height, video.width)
    parts = [decode(mp4, np.arange(n), whole, size) for mp4, n in zip(video.chunks, video.chunk_frames, strict=True)]
    frames = np.concatenate(parts)
    assert frames[:, 4:12, 4:12].mean() < 12, "the corner is not where it was"
    return np.round((frames[:, 40:56, 40:60].mean((1, 2, 3)) - 30) / 4).astype(int)


SOURCES = {
    "hevc.mp4": dict(codec="libx265", container="mp4", options={"x265-params": "log-level=none:crf=10"}),
    "hevc10.mp4": dict(
        codec="libx265", container="mp4", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none:crf=10"}
    ),
    "h264_10bit.mkv": dict(codec="libx264", container="matroska", pix_fmt="yuv420p10le", options={"crf": "8"}),
    "h264_444_odd.mp4": dict(codec="libx264", container="mp4", pix_fmt="yuv444p", size=(67, 99), options={"crf": "8"}),
    "vp8.webm": dict(codec="libvpx", container="webm", options={"crf": "4", "b": "2M"}),
    "vp9.webm": dict(codec="libvpx-vp9", container="webm", options={"crf": "10"}, sound=4.5),
    "av1.mkv": dict(codec="libsvtav1", container="matroska", options={"crf": "15", "preset": "12"}),
    "open_gop.mp4": dict(
        codec="libx264",
        container="mp4",
        options={"x264-params": "open-gop=1:keyint=10:bframes=3:b-pyramid=2", "crf": "8"},
    ),
    "offset.mkv": dict(codec="libx264", container="matroska", options={"crf": "8"}, start=10.0),
    "offset.ts": dict(codec="libx264", container="mpegts", options={"crf": "8"}, start=10.0),
    "b_frames.avi": dict(codec="mpeg4", container="avi", options={"qmax": "2", "bf": "2"}),
    "fragmented.mp4": dict(
        codec="libx264", container="mp4", options={"crf": "8"}, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "long_sound.mkv": dict(codec="libx264", container="matroska", options={"crf": "8"}, sound=9.0),
    "flash.flv": dict(codec="flv1", container="flv", options={"qmax": "2"}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_comes_whole_and_in_order(name, tmp_path, encode):
    path = tmp_path / name
    path.write_bytes(encode(film, **SOURCES[name]))
    video = cut_video(path, "a", SETTINGS)
    np.testing.assert_array_equal(shown(video), np.arange(COUNT))
    assert tuple(video.chunk_frames) == (20, 20, 5)


def test_the_suffix_does_not_matter(tmp_path):
    (tmp_path / "a.mp4").write_bytes(film("libvpx-vp9", "webm", options={"crf": "10"}))
    np.testing.assert_array_equal(shown(cut_video(tmp_path / "a.mp4", "a", SETTINGS)), np.arange(COUNT))


def test_titles_in_other_alphabets_do_not_matter(tmp_path):
    """Old files say their titles in any encoding."""
    whole = film("libx264", "matroska", options={"crf": "8"}, title="ABCDEFG")
    assert whole.count(b"ABCDEFG") == 1
    (tmp_path / "a.mkv").write_bytes(whole.replace(b"ABCDEFG", b"\xe4\xf6\xfc\xff\xc7\xbe\xc5"))
    np.testing.assert_array_equal(shown(cut_video(tmp_path / "a.mkv", "a", SETTINGS)), np.arange(COUNT))


CUT_OFF = {
    "vp9.webm": dict(codec="libvpx-vp9", container="webm", options={"crf": "10"}),
    "sound.webm": dict(codec="libvpx-vp9", container="webm", options={"crf": "10"}, sound=4.5),
    "h264.mkv": dict(codec="libx264", container="matroska", options={"crf": "8"}),
    "offset.mkv": dict(codec="libx264", container="matroska", options={"crf": "8"}, start=10.0),
    "hevc.mkv": dict(codec="libx265", container="matroska", options={"x265-params": "log-level=none"}),
    "mpeg4.avi": dict(codec="mpeg4", container="avi", options={"qmax": "2", "bf": "2"}),
}


@pytest.mark.parametrize("name", CUT_OFF)
def test_a_file_that_was_cut_off_is_refused_wherever_the_cut_is(name, tmp_path):
    whole = film(**CUT_OFF[name])
    for share in (0.3, 0.5, 0.7, 0.8):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(BrokenVideo) as told:
            cut_video(tmp_path / name, "a", SETTINGS)
        assert told.value.kind in ("truncated", "damaged", "empty")


def test_a_cut_off_hevc_mp4_is_refused(tmp_path):
    """Its index comes first and promises what is not there."""
    options = {"x265-params": "log-level=none"}
    whole = film("libx265", "mp4", options=options, muxer={"movflags": "faststart"}, path=tmp_path / "whole.mp4")
    assert whole.index(b"moov") < whole.index(b"mdat")
    for share in (0.5, 0.7, 0.9):
        (tmp_path / "a.mp4").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(BrokenVideo, match="it is truncated|frame data is damaged"):
            cut_video(tmp_path / "a.mp4", "a", SETTINGS)


NO_VIDEO = {
    "empty": (b"", "empty: 0 bytes"),
    "text": (b"this is no video\n" * 99, "cannot be read as a video"),
    "page": (b"<!doctype html><html><body>404 not found</body></html>", "cannot be read as a video"),
    "playlist": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nother.ts\n#EXT-X-ENDLIST\n",
        "no video file|cannot be",
    ),
    "list": (b"ffconcat version 1.0\nfile other.mp4\n", "no video file|cannot be read"),
}


@pytest.mark.parametrize("name", NO_VIDEO)
def test_what_is_no_video_is_refused(name, tmp_path):
    content, sentence = NO_VIDEO[name]
    (tmp_path / "other.mp4").write_bytes(encode_mp4(map(shade, range(9)), fps=FPS, settings=FAST))
    (tmp_path / "other.ts").write_bytes(film("libx264", "mpegts"))
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BrokenVideo, match=sentence):
        cut_video(tmp_path / "a.mp4", "a", SETTINGS)


def test_a_picture_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.jpg"), "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(shade(3), format="rgb24")))
        out.mux(stream.encode(None))
    with pytest.raises(BrokenVideo, match="no video file") as told:
        cut_video((tmp_path / "a.jpg").rename(tmp_path / "a.mp4"), "a", SETTINGS)
    assert told.value.kind == "unsupported"


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_mutated_sources_are_cut_or_refused(name, tmp_path, encode):
    """Bit flips, truncations, noisy headers and swapped pieces: chunks that decode, or a sentence, and soon."""
    good, rng = encode(film, **SOURCES[name]), np.random.default_rng(0)
    for trial in range(24):
        content = bytearray(good)
        one, other = (int(place) for place in rng.integers(len(good) - 200, size=2))
        if trial % 4 == 0:
            for place in rng.integers(len(good), size=rng.integers(1, 20)):
                content[place] ^= 1 << rng.integers(8)
        elif trial % 4 == 1:
            del content[one:]
        elif trial % 4 == 2:
            content[one % 600 : one % 600 + 8] = rng.bytes(8)
        else:
            content[one : one + 200], content[other : other + 200] = good[other : other + 200], good[one : one + 200]
        (tmp_path / name).write_bytes(content)
        began = time.monotonic()
        with contextlib.suppress(BrokenVideo):
            video = cut_video(tmp_path / name, "a", SETTINGS)
            assert all(count == 20 for count in video.chunk_frames[:-1]) and 0 < video.chunk_frames[-1] <= 20
        assert time.monotonic() - began < 20


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="no real clips here")
def test_real_clips(tmp_path):
    """All are cut, check and decode, but the one that was damaged on purpose."""
    with open(CLIPS / "manifest.csv", newline="") as file:
        lengths = {row["file"]: float(row["duration"]) for row in csv.DictReader(file)}
    settings = PrecutSettings(chunk_seconds=5, fps=10, short_side=96, encode=FAST)
    report = precut(CLIPS, tmp_path / "store", settings, workers=2, video_timeout=120)
    assert {failure.name for failure in report.failed} <= {"decord_corrupted", "decord_unordered"}, report.failed
    store = open_store(tmp_path / "store")
    assert len(report.done) + len(report.failed) == len(lengths)
    assert list(store.problems()) == []
    for name in report.done:
        info = store.info(name)
        file = name if name in lengths else next(file for file in lengths if Path(file).stem == name)
        assert min(info.height, info.width) <= 96 and info.duration > 0
        print(f"{file}: {lengths[file]} s by its header, {info.duration:.2f} s cut")
        clip = store.decode(name, np.linspace(0, info.duration, 3, endpoint=False), CropBox(0, 0, 32, 32), (32, 32))
        assert clip.shape == (3, 32, 32, 3)
    for failure in report.failed:
        print(f"refused ({failure.kind}): {failure.name}: {failure.reason}")
