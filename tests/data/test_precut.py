"""Any source becomes chunks of the store's rate and size in which every second is where it was."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.crops import CropBox
from vidlang.data.decode import BrokenVideo, decode, probe
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, cut_video, find_videos, precut, resample

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos in subfolders, one of them broken, and files that are none."""
    path = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(["b/two.mp4", "a one.MP4", "b/c/three.mp4", "z.mp4"]):
        source(path / name, 20 + 3 * number)
    (path / "b" / "broken.mp4").write_bytes((path / "z.mp4").read_bytes()[:900])
    (path / "readme.txt").write_text("no video")
    return path


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "store"
    lines = []
    report = precut(folder, output, SETTINGS, progress=lines.append)
    return output, report, lines


def test_folder_becomes_a_store_in_order_of_names(store):
    output, report, lines = store
    names = ["a one", "b/c/three", "b/two", "z"]
    assert report.done == names == open_store(output).videos
    assert [name for name, _ in report.failed] == ["b/broken"] and "truncated" in report.failed[0][1]
    failed = [json.loads(line) for line in (output / "failed.jsonl").read_text().splitlines()]
    assert failed == [{"video": "b/broken", "reason": report.failed[0][1]}]
    assert len(lines) == 5 and lines[0].startswith("[1/5] ") and "2 chunks, 2.9 s" in lines[0]
    assert [entry.name for entry in output.parent.iterdir()] == ["store"]


def test_store_shows_the_sources(store):
    opened = open_store(store[0])
    assert opened.settings["short_side"] == 32 and opened.settings["encode"]["crf"] == 8
    for name, count in (("b/two", 20), ("a one", 23), ("b/c/three", 26), ("z", 29)):
        info = opened.info(name)
        assert (info.frames, info.height, info.width, info.fps) == (count, HEIGHT, WIDTH, 8)
        clip = opened.decode(name, np.arange(count) / 8, CropBox(0, 0, HEIGHT, WIDTH), (HEIGHT, WIDTH))
        np.testing.assert_array_equal(numbers(clip), np.arange(count))


def test_workers_make_the_same_store(store, folder, tmp_path):
    report = precut(folder, tmp_path / "store", SETTINGS, workers=2)
    assert report == store[1]
    for entry in store[0].iterdir():
        assert (tmp_path / "store" / entry.name).read_bytes() == entry.read_bytes(), entry.name
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_pairs_of_name_and_path(folder, tmp_path):
    pairs = [("second", folder / "z.mp4"), ("first", str(folder / "a one.MP4"))]
    precut(pairs, tmp_path / "store", SETTINGS)
    assert open_store(tmp_path / "store").videos == ["first", "second"]


def test_mistakes_have_a_sentence(folder, store, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there are no videos in .*empty"):
        precut(tmp_path / "empty", tmp_path / "store", SETTINGS)
    with pytest.raises(ValueError, match="there is a complete chunk store at"):
        precut(folder, store[0], SETTINGS)
    with pytest.raises(ValueError, match="none of the 1 videos could be read; the first, 'x': .*truncated"):
        precut([("x", folder / "b" / "broken.mp4")], tmp_path / "store", SETTINGS)
    with pytest.raises(ValueError, match="none of the 1 videos.*cannot read the video"):
        precut([("x", folder / "nowhere.mp4")], tmp_path / "store", SETTINGS)
    with pytest.raises(ValueError, match="the list is empty"):
        precut([], tmp_path / "store", SETTINGS)
    with pytest.raises(ValueError, match="would both be called 'x'"):
        precut([("x", folder / "z.mp4"), ("x", folder / "a one.MP4")], tmp_path / "store", SETTINGS)
    with pytest.raises(ValueError, match="at least one worker"):
        precut(folder, tmp_path / "store", SETTINGS, workers=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_two_files_of_one_name_have_a_sentence(tmp_path):
    for suffix in (".mp4", ".mkv"):
        (tmp_path / f"a{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match="a.mkv' and .*a.mp4' would both be called 'a'"):
        precut(tmp_path, tmp_path / "store", SETTINGS)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(fps=0), "a chunk must hold a frame or more"),
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


def test_a_killed_run_leaves_no_store_and_the_next_one_makes_it(folder, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(40):
        shutil.copy(folder / "z.mp4", videos / f"{number}.mp4")
    output = tmp_path / "store"
    program = f"""
from vidlang.data.precut import PrecutSettings, precut
print("go", flush=True)
precut({str(videos)!r}, {str(output)!r}, PrecutSettings(0.25, 8, 32), progress=lambda line: print(line, flush=True))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not output.exists()
    leftovers = [entry for entry in tmp_path.iterdir() if entry != videos]
    assert leftovers
    for entry in leftovers:
        with pytest.raises(ValueError, match="not a chunk store"):
            open_store(entry)
    precut([("z", folder / "z.mp4")], output, SETTINGS)
    assert open_store(output).videos == ["z"]


def test_dead_worker_is_told(folder, tmp_path, monkeypatch):
    """A worker that is killed must end the run, not hang it."""
    began = time.perf_counter()
    monkeypatch.setattr("vidlang.data.precut._cut_to_files", _die)
    with pytest.raises(RuntimeError, match="a worker died cutting 'a one'"):
        precut(folder, tmp_path / "store", SETTINGS, workers=2)
    assert time.perf_counter() - began < 60
    assert not list(tmp_path.iterdir())


def _die(job):
    os.kill(os.getpid(), signal.SIGKILL)
