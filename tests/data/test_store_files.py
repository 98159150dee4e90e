"""Folders that somebody else cut give the same frames as our own store, and what is wrong with them is told."""

import os
import pickle
import shutil
import threading
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from vidlang.data.chunks import StoreAway, open_store
from vidlang.data.crops import CropBox
from vidlang.data.decode import decode
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.adopt import adopt
from vidlang.data.stores.writer import CutVideo, write_store

HEIGHT, WIDTH, FPS, SECONDS = 32, 48, 8, 2
FULL, CROP, SIZE = CropBox(0, 0, HEIGHT, WIDTH), CropBox(4, 6, 20, 30, flip=True), (16, 20)
FAST = EncodeSettings(preset="ultrafast", crf=12)
LENGTHS = {"a/one": 37, "drei ü": 32, "two": 7}


def shades(video, count):
    """Grey levels that tell frames of a video apart, over a pattern that tells videos apart."""
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = (20 + 5 * np.arange(count))[:, None, None, None]
    frames[:, :, : 8 * (video + 1)] //= 2
    return frames


def cut(name, video, count):
    frames, length = shades(video, count), FPS * SECONDS
    parts = [frames[first : first + length] for first in range(0, count, length)]
    chunks = [encode_mp4(part, fps=FPS, settings=FAST) for part in parts]
    return CutVideo(name, FPS, WIDTH, HEIGHT, chunks, [len(part) for part in parts])


@pytest.fixture(scope="module")
def videos():
    return [cut(name, number, count) for number, (name, count) in enumerate(LENGTHS.items())]


@pytest.fixture(scope="module")
def records(videos, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("records") / "store", videos, {})


def lay_out(folder, videos, layout):
    for video in videos:
        place = folder / (f"{video.name}.mp4" if layout == "seconds" else video.name)
        place.mkdir(parents=True)
        for number, chunk in enumerate(video.chunks):
            (place / f"{number * SECONDS if layout == 'seconds' else number}.mp4").write_bytes(chunk)
    return folder


@pytest.fixture(params=["seconds", "index"])
def foreign(request, videos, tmp_path):
    return lay_out(tmp_path / "foreign", videos, request.param), request.param, tmp_path / "store"


def same_frames(store, reference):
    rng = np.random.default_rng(0)
    for video, count in LENGTHS.items():
        numbers = np.arange(count)
        times = [numbers / FPS, (numbers + 0.999) / FPS, rng.uniform(0, count / FPS, 30), np.array([0.0, 99.0])]
        for times_T in times:
            expected = reference.decode(video, times_T, CROP, SIZE)
            np.testing.assert_array_equal(store.decode(video, times_T, CROP, SIZE), expected)


def test_chunk_files_give_the_frames_of_records(foreign, records):
    folder, layout, output = foreign
    before = sorted(folder.rglob("*"))
    report = adopt(folder, output, layout)
    store = open_store(output, expect={"kind": "chunk_files", "layout": layout, "fps": FPS, "chunk_seconds": SECONDS})
    assert report.videos == 3 and not (report.foreign or report.refused or report.notes)
    assert store.videos == sorted(LENGTHS) and sorted(folder.rglob("*")) == before
    same_frames(store, records)
    for video in store.videos:
        assert store.info(video) == records.info(video)
        assert store.chunk_frames(video).tolist() == records.chunk_frames(video).tolist()
        assert store.read(video, 0) == records.read(video, 0)
    assert not list(store.problems())
    store.check()


def test_store_and_files_move_together(foreign, records):
    folder, layout, output = foreign
    adopt(folder, output, layout)
    shutil.move(folder.parent / "store", folder.parent / "moved" / "store")
    shutil.move(folder, folder.parent / "moved" / "foreign")
    same_frames(open_store(folder.parent / "moved" / "store"), records)


def test_workers_find_the_same(foreign):
    folder, layout, output = foreign
    adopt(folder, output, layout)
    lines = []
    adopt(folder, output.with_name("again"), layout, workers=2, progress=lines.append)
    assert open_store(output).content_hash == open_store(output.with_name("again")).content_hash
    assert lines == [f"{name}: adopted" for name in sorted(LENGTHS)]
    assert not list(open_store(output).problems(workers=2))


def test_whole_videos_give_the_frames_of_records(records, tmp_path):
    folder = tmp_path / "whole"
    for number, (name, count) in enumerate(LENGTHS.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.mp4").write_bytes(encode_mp4(shades(number, count), fps=FPS, settings=FAST))
    (folder / "notes.txt").write_text("not a video")
    report = adopt(folder, folder / "store", "videos")  # inside, as the files' folder may be all there is
    assert report.foreign == ["notes.txt"] and report.videos == 3
    assert adopt(folder, folder / "store", "videos", overwrite=True) == report
    store = open_store(folder / "store")
    assert store.kind == "videos" and store.videos == sorted(LENGTHS)
    for video, count in LENGTHS.items():
        whole = decode((folder / f"{video}.mp4").read_bytes(), np.arange(count), CROP, SIZE)
        np.testing.assert_array_equal(store.decode(video, np.arange(count) / FPS, CROP, SIZE), whole)
        # Chunks were coded each by itself; the grey levels tell the frame all the same.
        levels = store.decode(video, np.arange(count) / FPS + 0.01, FULL, (32, 48))[:, 5, 40].mean(1)
        np.testing.assert_allclose(levels, 20 + 5 * np.arange(count), atol=3)
    assert not list(store.problems())


def write_uneven(path, times, codec="libx264"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 1000)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for frame_HWC, milliseconds in zip(shades(0, len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(frame_HWC, "rgb24")
            frame.pts, frame.time_base = milliseconds, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")])
@pytest.mark.filterwarnings("ignore:decoding a video from its start")
def test_of_uneven_frames_the_last_that_has_begun_is_shown(suffix, codec, tmp_path):
    times = np.cumsum([0, 40, 200, 10, 33, 500, 7, 7, 120, 90])
    (tmp_path / "v").mkdir()
    write_uneven(tmp_path / "v" / f"uneven.{suffix}", (times + 70).tolist(), codec)
    adopt(tmp_path / "v", tmp_path / "store", "videos")
    store = open_store(tmp_path / "store")
    asked_T = np.concatenate([times / 1000, times[1:] / 1000 - 0.0005, np.random.default_rng(0).uniform(0, 1.007, 20)])
    expected = [int(np.flatnonzero(times / 1000 <= time)[-1]) for time in asked_T]
    levels = store.decode("uneven", asked_T, FULL, (32, 48))[:, 5, 40].mean(1)
    np.testing.assert_array_equal(np.round((levels - 20) / 5), expected)
    with warnings.catch_warnings(action="error"):
        assert not list(store.problems())


def test_what_real_folders_have_is_told_and_handled(videos, tmp_path):
    folder = lay_out(tmp_path / "f", [videos[0]], "seconds")
    empty = b"\0\0\0\x20ftypisom" + bytes(250)
    one = folder / "a" / "one.mp4"
    (one / "6.mp4").write_bytes(empty)
    (one / "thumb.jpg").write_bytes(b"x")
    (folder / "README").write_text("x")
    (one / "._0.mp4").write_bytes(b"x")
    for name in ("gap", "torn", "hollow", "wide"):
        shutil.copytree(one, folder / f"{name}.mp4", ignore=shutil.ignore_patterns("*.jpg", "._*"))
        (folder / f"{name}.mp4" / "6.mp4").unlink()
    (folder / "gap.mp4" / "2.mp4").unlink()
    (folder / "torn.mp4" / "2.mp4").write_bytes(videos[0].chunks[1][:-200])
    (folder / "hollow.mp4" / "2.mp4").write_bytes(empty)
    (folder / "wide.mp4" / "2.mp4").write_bytes(encode_mp4(np.zeros((16, 64, 64, 3), np.uint8), fps=FPS, settings=FAST))
    report = adopt(folder, tmp_path / "store", "seconds")
    assert report.foreign == ["README", "a/one.mp4/._0.mp4", "a/one.mp4/thumb.jpg"]
    assert report.notes == [("a/one", "its last chunk '6.mp4' of 262 bytes is empty, left out")]
    refused = {name: (kind, reason) for name, kind, reason in report.refused}
    assert set(refused) == {"gap", "torn", "hollow", "wide"}
    assert refused["gap"][0] in ("missing", "truncated") and "chunk" in refused["gap"][1]
    assert refused["torn"][0] == "truncated" and "'2.mp4'" in refused["torn"][1]
    assert "'2.mp4'" in refused["hollow"][1] and "another size" in refused["wide"][1]
    assert open_store(tmp_path / "store").videos == ["a/one"]


def test_chunks_of_odd_frame_counts_do_not_drift(tmp_path):
    counts, starts = [16, 15, 17, 16, 3], [0, 5, 10, 15, 20]
    (tmp_path / "f" / "v").mkdir(parents=True)
    for number, (count, start) in enumerate(zip(counts, starts, strict=True)):
        frames = shades(0, start + count)[start:]
        (tmp_path / "f" / "v" / f"{number}.mp4").write_bytes(encode_mp4(frames, fps=FPS, settings=FAST))
    report = adopt(tmp_path / "f", tmp_path / "store", "index")
    assert report.notes == [("v", "of its chunks, which have 16 frames, 1 has 15, 2 has 17")]
    store = open_store(tmp_path / "store")
    times = np.array([2.0, 3.75, 3.9, 4.0, 6.0, 7.99, 8.0, 8.3, 99.0])
    chunks, ranks = [1, 1, 1, 2, 3, 3, 4, 4, 4], [0, 14, 14, 0, 0, 15, 0, 2, 2]
    levels = store.decode("v", times, FULL, (32, 48))[:, 5, 40].mean(1)
    level = [20 + 5 * (starts[chunk] + rank) for chunk, rank in zip(chunks, ranks, strict=True)]
    np.testing.assert_allclose(levels, level, atol=2.4)
    assert store.info("v").duration == 8 + 3 / FPS


def test_the_time_of_a_frame_in_floating_point_shows_that_frame(tmp_path):
    (tmp_path / "f" / "v").mkdir(parents=True)
    chunk = encode_mp4(shades(0, 10), fps=5, settings=FAST)
    for number in range(4):
        (tmp_path / "f" / "v" / f"{number}.mp4").write_bytes(chunk)
    adopt(tmp_path / "f", tmp_path / "s", "index")
    levels = open_store(tmp_path / "s").decode("v", np.arange(40) / 5, FULL, (32, 48))[:, 5, 40].mean(1)
    np.testing.assert_allclose(levels, 20 + 5 * (np.arange(40) % 10), atol=2.4)


def test_damage_after_adoption_is_told_by_kind(foreign, records):
    folder, layout, output = foreign
    adopt(folder, output, layout)
    store = open_store(output)
    file = folder / store.file(store.videos.find("two"), 0)
    good = file.read_bytes()
    damages = {"truncated": good[:-5], "empty": b"", "damaged": good[:-5] + b"wrong", "missing": None}
    for kind, content in damages.items():
        file.write_bytes(content) if content is not None else file.unlink()
        for attempt in (store, open_store(output)):
            with pytest.raises(BrokenVideo, match="chunk 0 of video 'two'") as caught:
                attempt.decode("two", np.array([0.0]), FULL, SIZE)
            assert caught.value.kind == kind
        assert [(problem.video, problem.chunk, problem.kind) for problem in store.problems()] == [("two", 0, kind)]
    file.write_bytes(good)
    same_frames(store, records)


def test_a_whole_video_that_changes_is_noticed(tmp_path):
    (tmp_path / "f").mkdir()
    file = tmp_path / "f" / "v.mp4"
    file.write_bytes(encode_mp4(shades(0, 8), fps=FPS, settings=FAST))
    adopt(tmp_path / "f", tmp_path / "s", "videos")
    store, good = open_store(tmp_path / "s"), file.read_bytes()
    first = store.decode("v", np.array([0.0]), FULL, SIZE)
    broken = bytearray(good)
    broken[-9] ^= 4
    file.write_bytes(broken)
    os.utime(file, ns=(1, 1))
    with pytest.raises(BrokenVideo, match="checksum"):
        store.decode("v", np.array([0.0]), FULL, SIZE)
    file.write_bytes(good)  # its date is another one now, and its content the same
    np.testing.assert_array_equal(store.decode("v", np.array([0.0]), FULL, SIZE), first)


def test_a_store_that_is_away_is_told_from_a_file_that_is(foreign, records):
    folder, layout, output = foreign
    adopt(folder, output, layout)
    store = open_store(output)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StoreAway, match="cannot be reached"):
        store.read("two", 0)
    folder.mkdir()  # what a disk leaves behind that was unmounted
    with pytest.raises(StoreAway, match="empty"):
        store.read("two", 0)
    folder.rmdir()
    output.rename(output.with_name("away"))
    with pytest.raises(StoreAway, match="cannot be reached"):
        store.read("two", 0)
    output.with_name("away").rename(output)
    folder.with_name("elsewhere").rename(folder)
    assert store.read("two", 0) == records.read("two", 0)


def test_pickles_and_serves_many_threads(foreign, records):
    folder, layout, output = foreign
    adopt(folder, output, layout)
    store = pickle.loads(pickle.dumps(open_store(output)))
    keys = [(video, k) for video in LENGTHS for k in range(len(records.chunk_frames(video)))]
    expected = {key: records.read(*key) for key in keys}
    wrong = []

    def reader(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            key = keys[rng.integers(len(keys))]
            if store.read(*key) != expected[key]:
                wrong.append(key)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_what_cannot_be_adopted_is_told(videos, tmp_path):
    folder = lay_out(tmp_path / "f", videos, "index")
    with pytest.raises(ValueError, match="unknown layout 'second'"):
        adopt(folder, tmp_path / "s", "second")
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        adopt(tmp_path / "nowhere", tmp_path / "s", "index")
    with pytest.raises(ValueError, match="nothing in .* can be adopted with the layout 'images'"):
        adopt(folder, tmp_path / "s", "images")
    with pytest.raises(ValueError, match="begin 2 s apart in different videos, and 3 s was given"):
        adopt(folder, tmp_path / "s", "index", cut_seconds=3)
    assert not (tmp_path / "s").exists()
    adopt(folder, tmp_path / "s", "index")
    with pytest.raises(ValueError, match="'chunk_files', 'records' was expected; its fps is 8.0, 30 was expected"):
        open_store(tmp_path / "s", expect={"kind": "records", "fps": 30})
