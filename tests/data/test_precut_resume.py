"""A run that is killed, at whatever step, is taken up by the next one and ends in the same store."""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
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


class Killed(BaseException):
    """What stands in for a kill where a real one would take too long."""


def interrupt(monkeypatch, folder, output, after, settings=SETTINGS, **options):
    """A run that ends when so many videos are cut; returns the names of those it cut."""
    cut, real = [], precut_module.cut_to_spool

    def cutting(job, sign):
        if len(cut) == after:
            raise Killed
        cut.append(job.video.name)
        return real(job, sign)

    with monkeypatch.context() as patch:
        patch.setattr(precut_module, "cut_to_spool", cutting)
        try:
            precut(folder, output, settings, **options)
        except Killed:
            assert not output.exists()
    return cut


def test_a_run_goes_on_where_it_ended(whole, folder, tmp_path, monkeypatch):
    """After each video a kill: nothing is cut twice, and the store is the same."""
    cut = []
    for _ in range(5):
        cut += interrupt(monkeypatch, folder, tmp_path / "store", 1)
    assert cut == ["a one", "b/broken", "b/c/three", "b/two", "z"]
    assert precut(folder, tmp_path / "store", SETTINGS, overwrite=True) == whole[1]
    assert content(tmp_path / "store") == content(whole[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_kill_at_any_step_of_the_disk_costs_nothing(tmp_path, monkeypatch):
    """The n-th file that is renamed, or brought to the disk, is the last; for every n."""
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 2)
    pairs = [(f"{n}", source(tmp_path / f"{n}.mp4", n, 5)) for n in range(3)] + [("x", tmp_path / "nowhere.mp4")]
    (tmp_path / "out").mkdir()
    precut(pairs, tmp_path / "whole", SETTINGS)
    steps, output, left = 0, tmp_path / "out" / "store", [-1]
    while left[0] < 0:
        steps, left = steps + 1, [steps]
        shutil.rmtree(output, ignore_errors=True)
        with monkeypatch.context() as patch:
            for name in ("replace", "fsync"):
                patch.setattr(os, name, counted(getattr(os, name), left))
            with contextlib.suppress(Killed):
                precut(pairs, output, SETTINGS)
        if not output.exists():
            precut(pairs, output, SETTINGS)
        elif left[0] < 0:  # only cleaning up was left
            with pytest.raises(ValueError, match="complete chunk store"):
                precut(pairs, output, SETTINGS)
        assert content(output) == content(tmp_path / "whole"), steps
        assert [entry.name for entry in output.parent.iterdir()] == ["store"], steps
    assert steps > 20


def counted(function, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return function(*arguments, **options)

    return call


def test_a_torn_journal_and_a_damaged_spool_are_made_good(whole, folder, tmp_path, monkeypatch):
    output, work = tmp_path / "store", tmp_path / "store.partial"
    interrupt(monkeypatch, folder, output, 4)
    with open(work / "journal.jsonl", "a") as file:
        file.write('{"numbers": [3], "fi')
    (chunk,) = (work / "spool" / "0000003" / "chunks").glob("0.mp4")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    (work / "spool" / "0000004.part-host-1").mkdir()
    assert interrupt(monkeypatch, folder, output, 9) == ["b/two", "z"]
    assert content(output) == content(whole[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_shard_that_vanished_is_made_again(whole, folder, tmp_path, monkeypatch):
    output = tmp_path / "store"
    interrupt(monkeypatch, folder, output, 4)
    (shard,) = (tmp_path / "store.partial" / "store").glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert interrupt(monkeypatch, folder, output, 9) == ["a one", "b/c/three", "z"]
    assert content(output) == content(whole[0])


def test_other_settings_and_inputs_are_told(whole, folder, tmp_path, monkeypatch):
    output, copy = tmp_path / "store", shutil.copytree(folder, tmp_path / "copy")
    interrupt(monkeypatch, copy, output, 2)
    other = PrecutSettings(chunk_seconds=1.5, fps=8, short_side=30, encode=EncodeSettings(preset="superfast"))
    with pytest.raises(
        ValueError, match="short_side was 32 and is 30; encode.preset was 'ultrafast' and is 'superfast'"
    ):
        precut(copy, output, other)
    with pytest.raises(ValueError, match="layout was 'records' and is 'index'.*--restart"):
        precut(copy, output, SETTINGS, layout="index")
    source(copy / "new.mp4", 7, 5)
    (copy / "z.mp4").unlink()
    source(copy / "b" / "two.mp4", 8, 5)
    with pytest.raises(ValueError, match="1 of .* new, 'new' first; 1 .* gone, 'z' first; 1 .* changed, 'b/two' first"):
        precut(copy, output, SETTINGS)
    assert precut(copy, output, other, restart=True).done == ["a one", "b/c/three", "b/two", "new"]
    assert open_store(output).settings["short_side"] == 30


@pytest.mark.parametrize("layout", ["records", "index"])
def test_failures_are_remembered_until_asked_for(layout, folder, tmp_path, monkeypatch):
    """A mended file takes its place, though the shard that it belongs in was written already."""
    copy, output = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "store"
    interrupt(monkeypatch, copy, output, 4, layout=layout)
    assert interrupt(monkeypatch, copy, output, 0, layout=layout) == []
    source(copy / "b" / "broken.mp4", 9, 20)
    with pytest.raises(ValueError, match="1 of the videos are changed"):
        precut(copy, output, SETTINGS, layout=layout)
    assert precut(copy, output, SETTINGS, layout=layout, retry_failed=True).done == sorted([*NAMES, "b/broken"])
    precut(copy, tmp_path / "anew", SETTINGS, layout=layout)
    assert content(output) == content(tmp_path / "anew")


def test_two_runs_do_not_share_a_store(folder, tmp_path):
    def second(progress):
        if progress.finished:
            return
        with pytest.raises(ValueError, match="another process is at work in"):
            precut(folder, tmp_path / "store", SETTINGS)

    precut([("z", folder / "z.mp4")], tmp_path / "store", SETTINGS, progress=second)


def test_an_old_store_stays_until_the_new_one_is_whole(whole, folder, tmp_path, monkeypatch):
    output = tmp_path / "store"
    precut([("z", folder / "z.mp4")], output, SETTINGS)
    before = content(output)
    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(precut_module, "cut_to_spool", lambda job, sign: (_ for _ in ()).throw(Killed))
        precut(folder, output, SETTINGS, overwrite=True)
    assert content(output) == before
    os.replace(output, tmp_path / "store.partial" / "old")  # as a kill between two renames leaves it
    with pytest.raises(ValueError, match="there is a complete chunk store"):
        precut(folder, output, SETTINGS)
    assert content(output) == before
    precut(folder, output, SETTINGS, overwrite=True)
    assert content(output) == content(whole[0])
    (tmp_path / "store.partial" / "spool").mkdir(parents=True)  # as a kill leaves it when all was done
    (tmp_path / "store.partial" / "run.json").write_text('{"settings": {}, "inputs": ""}')
    with pytest.raises(ValueError, match="there is a complete chunk store"):
        precut(folder, output, SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_ends_with_a_sentence_and_loses_nothing(whole, folder, tmp_path):
    """A limit on the size of files stands in for the disk; shards are bigger than it."""
    program = f"""
        import resource, sys
        from vidlang.data.stores import record_writer
        from vidlang.data.encode import EncodeSettings
        from vidlang.data.precut import PrecutSettings, precut
        record_writer.CHUNKS_PER_SHARD = 5
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        settings = PrecutSettings(chunk_seconds=1.5, fps=8, short_side=32, encode=EncodeSettings(preset="ultrafast"))
        try:
            precut({str(folder)!r}, sys.argv[1], settings, workers=2)
        except OSError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), tmp_path / "store"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "writing video_chunks-chunks.array_record-00000 failed" in result.stdout, result.stderr
    assert "what is done is kept in" in result.stdout and "run the same command again" in result.stdout
    assert not (tmp_path / "store").exists()
    assert precut(folder, tmp_path / "store", SETTINGS) == whole[1]
    assert content(tmp_path / "store") == content(whole[0])
