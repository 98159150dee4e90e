"""Videos become the same store whoever cuts them, and what a video does ends no run."""

import json
import shutil
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data import precut as precut_module
from vidlang.data.chunks import open_store
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.stores import record_writer

HEIGHT, WIDTH = 32, 48
FAST = EncodeSettings(preset="ultrafast")
SETTINGS = PrecutSettings(chunk_seconds=1.5, fps=8, short_side=32, encode=FAST)
NAMES = ["a one", "b/c/three", "b/two", "z"]


def source(path, number, frames):
    """A video whose frames are all of one colour, another for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = (np.full((HEIGHT, WIDTH, 3), (10 * number, 100, 5 * k), np.uint8) for k in range(frames))
    path.write_bytes(encode_mp4(pictures, fps=8, settings=FAST))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos of 4, 3, 2 and 1 chunks in subfolders, one that is broken, and files that are none."""
    path = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(["a one.MP4", "b/c/three.mp4", "b/two.mp4", "z.mp4"]):
        source(path / name, number, 40 - 10 * number)
    (path / "b" / "broken.mp4").write_bytes((path / "z.mp4").read_bytes()[:900])
    (path / "readme.txt").write_text("no video")
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 5)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The store of a run that nothing disturbed, its report and what it said of its progress."""
    output, said = tmp_path_factory.mktemp("out") / "store", []
    original, record_writer.CHUNKS_PER_SHARD = record_writer.CHUNKS_PER_SHARD, 5
    try:
        report = precut(folder, output, SETTINGS, progress=lambda progress: said.append(progress.line()))
    finally:
        record_writer.CHUNKS_PER_SHARD = original
    return output, report, said


def content(folder):
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_becomes_a_store_in_order_of_names(whole, folder):
    output, report, said = whole
    opened = open_store(output)
    assert report.done == NAMES == list(opened.videos)
    (failure,) = report.failed
    assert (failure.name, failure.kind, failure.file) == ("b/broken", "truncated", str(folder / "b" / "broken.mp4"))
    failed = [json.loads(line) for line in (output / "failed.jsonl").read_text().splitlines()]
    assert failed == [{"file": failure.file, "name": "b/broken", "kind": "truncated", "reason": failure.reason}]
    assert "truncated" in failure.reason
    assert said[-1].startswith("[5/5] videos, 1 failed, ") and "x realtime" in said[-1] and "ETA" in said[0]
    assert [entry.name for entry in output.parent.iterdir()] == ["store"]
    assert opened.settings["short_side"] == 32 and opened.settings["encode"]["preset"] == "ultrafast"
    assert [opened.info(name).frames for name in NAMES] == [40, 30, 20, 10]


def test_shards_end_with_a_video(whole):
    """4 and 3 chunks make the first of at least 5, 2 and 1 are left."""
    assert json.loads((whole[0] / "store.json").read_text())["shards"] == {
        "video_chunks-chunks.array_record-00000": 7,
        "video_chunks-chunks.array_record-00001": 3,
    }


def test_a_shard_is_full_at_its_number_of_chunks(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 4)
    precut(folder, tmp_path / "store", SETTINGS)
    assert list(json.loads((tmp_path / "store" / "store.json").read_text())["shards"].values()) == [4, 5, 1]


def test_shards_end_at_a_number_of_bytes_too(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "SHARD_BYTES", 1)
    precut(folder, tmp_path / "store", SETTINGS)
    assert list(json.loads((tmp_path / "store" / "store.json").read_text())["shards"].values()) == [4, 3, 2, 1]


def test_it_is_a_tfds_dataset(whole):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(whole[0]))
    source = builder.as_data_source("chunks")
    found = [(source[n]["video"].decode(), source[n]["chunk"], source[n]["frames"]) for n in range(len(source))]
    expected = [
        (name, chunk, frames)
        for name, counts in zip(NAMES, [[12, 12, 12, 4], [12, 12, 6], [12, 8], [10]], strict=True)
        for chunk, frames in enumerate(counts)
    ]
    assert found == expected
    assert builder.info.splits["chunks"].shard_lengths == [7, 3]


@pytest.mark.parametrize("workers", [1, 3])
def test_helpers_make_the_same_store(workers, whole, folder, tmp_path):
    report = precut(folder, tmp_path / "store", SETTINGS, workers=workers, video_timeout=60)
    assert report == whole[1]
    assert content(tmp_path / "store") == content(whole[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_pairs_of_name_and_path(folder, tmp_path):
    pairs = [("second", folder / "z.mp4"), ("first", str(folder / "a one.MP4"))]
    precut(pairs, tmp_path / "store", SETTINGS)
    assert list(open_store(tmp_path / "store").videos) == ["first", "second"]


@pytest.mark.parametrize("layout, second", [("seconds", "3.mp4"), ("index", "1.mp4")])
def test_chunks_as_files(layout, second, whole, folder, tmp_path):
    settings = PrecutSettings(chunk_seconds=3, fps=8, short_side=32, encode=FAST)
    precut(folder, tmp_path / "records", settings)
    precut(folder, tmp_path / "files", settings, layout=layout)
    records, files = open_store(tmp_path / "records"), open_store(tmp_path / "files")
    assert files.kind == "chunk_files" and files.content_hash == records.content_hash
    video = tmp_path / "files" / ("b/c/three.mp4" if layout == "seconds" else "b/c/three")
    assert sorted(path.name for path in video.iterdir()) == ["0.mp4", second]
    for name in NAMES:
        for chunk in range(len(records.chunk_frames(name))):
            assert files.read(name, chunk) == records.read(name, chunk)
    index = pa.ipc.open_file((tmp_path / "files" / "index.arrow").read_bytes()).read_all().to_pylist()
    for name, time_ns in ((name, t) for row in index for name, t in zip(row["file"], row["modified_ns"], strict=True)):
        assert (tmp_path / "files" / name).stat().st_mtime_ns == time_ns
    precut(folder, tmp_path / "again", settings, layout=layout, workers=2)
    assert content(tmp_path / "again") == content(tmp_path / "files")


def test_mistakes_have_a_sentence(folder, whole, tmp_path):
    out = tmp_path / "store"
    cases = [
        ([], {}, "the list is empty"),
        (folder, {"workers": 0}, "at least one worker"),
        (folder, {"layout": "tar"}, "unknown layout 'tar'; there are records, seconds, index"),
        (folder, {"layout": "seconds"}, "by whole seconds, and they last 1.5 s"),
        ([("x", folder / "b" / "broken.mp4")], {}, "none of the 1 videos could be read; the first, 'x': .*truncated"),
        ([("x", folder / "nowhere.mp4")], {}, "none of the 1 videos.*cannot read the video"),
    ]
    for inputs, options, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            precut(inputs, out, SETTINGS, **options)
    with pytest.raises(ValueError, match="there is a complete chunk store at"):
        precut(folder, whole[0], SETTINGS)
    assert not list(tmp_path.iterdir()) and len(list(whole[0].parent.iterdir())) == 1


CUTTER = """
import os, signal, time
from pathlib import Path
from vidlang.data.cutting.spool import cut_to_spool

def cut(job, sign):
    name, marker = Path(job.video.path).stem, Path(__file__).with_name("died")
    if name == "hangs":
        time.sleep(600)
    if name == "kills" or (name == "once" and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "raises":
        raise FloatingPointError("our mistake")
    return cut_to_spool(job, sign)
"""


@pytest.fixture
def bad_cutter(tmp_path, monkeypatch):
    """A function for helper processes that hangs or dies of videos of certain names."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "bad_cutter.py").write_text(CUTTER)
    monkeypatch.syspath_prepend(tmp_path / "code")
    import bad_cutter

    monkeypatch.setattr(precut_module, "cut_to_spool", bad_cutter.cut)
    yield
    del sys.modules["bad_cutter"]


@pytest.mark.slow
def test_a_video_that_hangs_or_kills_is_listed_and_the_run_goes_on(folder, tmp_path, bad_cutter):
    pairs = [(name, folder / "z.mp4") for name in ("1", "4")]
    for name, stem in (("0", "once"), ("2", "hangs"), ("3", "kills")):
        shutil.copy(folder / "z.mp4", tmp_path / f"{stem}.mp4")
        pairs.append((name, tmp_path / f"{stem}.mp4"))
    began = time.monotonic()
    report = precut(pairs, tmp_path / "store", SETTINGS, workers=2, video_timeout=3)
    assert time.monotonic() - began < 60
    assert report.done == ["0", "1", "4"]
    reasons = {failure.name: (failure.kind, failure.reason) for failure in report.failed}
    assert reasons == {
        "2": ("timeout", "nothing came of it for 3 s"),
        "3": ("killed", "the process that cut it was killed by signal 9, twice; memory may be short"),
    }
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.suffix) == ["code", "store"]


def test_our_own_mistake_in_a_helper_ends_the_run(folder, tmp_path, bad_cutter):
    shutil.copy(folder / "z.mp4", tmp_path / "raises.mp4")
    with pytest.raises(RuntimeError, match="FloatingPointError: our mistake"):
        precut([("x", tmp_path / "raises.mp4")], tmp_path / "store", SETTINGS, workers=2)


def test_what_a_video_makes_a_library_raise_is_listed(folder, tmp_path, monkeypatch):
    def strange(path, settings):
        raise IndexError("list index out of range")
        yield

    monkeypatch.setattr("vidlang.data.cutting.spool.cut_chunks", strange)
    with pytest.raises(ValueError, match="none of the 1 videos.*IndexError: list index out of range"):
        precut([("x", folder / "z.mp4")], tmp_path / "store", SETTINGS)
