"""What precut deletes is its own, wherever it is told to work, and stores come to be on any disk and address."""

import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vidlang.data import folders
from vidlang.data.chunks import open_store
from vidlang.data.cutting import target as target_module
from vidlang.data.cutting.inputs import find_inputs
from vidlang.data.cutting.spool import CutJob, cut_to_spool
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.stores.record_writer import ShardWriter, read_shard
from vidlang.data.stores.writer import CutVideo, write_store

FAST = EncodeSettings(preset="ultrafast")
SETTINGS = PrecutSettings(chunk_seconds=1, fps=8, short_side=32, encode=FAST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of two chunks."""
    path = tmp_path_factory.mktemp("videos")
    for number in range(2):
        frames = [np.full((32, 48, 3), 5 * k + number, np.uint8) for k in range(14)]
        (path / f"v{number}.mp4").write_bytes(encode_mp4(frames, fps=8, settings=FAST))
    return path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "store"
    precut(folder, output, SETTINGS)
    return content(output)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    pass


def kill(progress):
    raise Killed


@pytest.mark.parametrize("options", [{}, {"restart": True}, {"overwrite": True}, {"retry_failed": True}])
@pytest.mark.parametrize("name", ["w3", "store.partial"])
def test_a_folder_with_other_files_is_refused_and_left(name, options, folder, tmp_path):
    (tmp_path / name / "spool").mkdir(parents=True)
    (tmp_path / name / "spool" / "thesis.tex").write_text("years")
    (tmp_path / name / "run.json").write_text('{"settings": "of another program"}')
    before = content(tmp_path)
    work = tmp_path / name if name == "w3" else None
    with pytest.raises(ValueError, match=f"{name}' holds other files; name a new or empty folder with --work"):
        precut(folder, tmp_path / "store", SETTINGS, work=work, **options)
    assert content(tmp_path) == before
    if name != "w3":
        with pytest.raises(ValueError, match="holds other files"):
            write_store(tmp_path / "store", [CutVideo("a", 8, 48, 32, [b""], [1])], {})
        assert content(tmp_path) == before


def test_other_files_in_our_own_folder_stay(folder, whole, tmp_path):
    work, output = tmp_path / "work", tmp_path / "store"
    with pytest.raises(Killed):
        precut(folder, output, SETTINGS, work=work, progress=kill)
    (work / "notes.txt").write_text("mine")
    precut(folder, output, SETTINGS, work=work, restart=True)
    assert content(output) == whole and content(work) == {"notes.txt": b"mine"}


def test_a_refused_run_leaves_an_empty_folder(folder, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a chunk store"):
        precut(folder, tmp_path / "store", SETTINGS, work=tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


def test_work_lies_apart_from_videos_and_store(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    videos, store = [("x", folder / "v0.mp4")], tmp_path / "store"
    for inputs, work in (
        (folder, folder),
        (folder, folder / "work"),
        (folder, tmp_path / "link" / "work"),
        (folder, folder.parent),
        (videos, folder),
        (videos, store),
        (videos, store / "work"),
        (videos, tmp_path),
    ):
        with pytest.raises(ValueError, match="name another folder with --work"):
            precut(inputs, store, SETTINGS, work=work)
    assert sorted(path.name for path in folder.iterdir()) == ["v0.mp4", "v1.mp4"] and not store.exists()


def test_a_killed_building_is_taken_over(folder, whole, tmp_path):
    """What write_store leaves when it is killed hinders neither it nor precut."""
    with pytest.raises(Killed), folders.built_aside(tmp_path / "store") as building:
        (building / "half").touch()
        shutil.copytree(tmp_path / "store.partial", tmp_path / "killed")
        raise Killed
    os.replace(tmp_path / "killed", tmp_path / "store.partial")
    with pytest.raises(ValueError, match="begin anew with --restart"):
        precut(folder, tmp_path / "store", SETTINGS)
    with folders.built_aside(tmp_path / "store") as building:
        assert not list(building.iterdir())
    precut(folder, tmp_path / "store", SETTINGS, restart=True)
    assert content(tmp_path / "store") == whole


@pytest.mark.parametrize("name", ["0000001", "0000001.part"])
def test_a_video_may_be_called_as_a_part_is(name, folder, tmp_path):
    pairs = [(name, folder / "v0.mp4"), ("x", folder / "v1.mp4")]
    precut(pairs, tmp_path / "store", SETTINGS, layout="index")
    assert set(open_store(tmp_path / "store").videos) == {name, "x"}
    assert not list(open_store(tmp_path / "store").problems())


def test_work_on_another_disk(folder, whole, tmp_path, monkeypatch):
    """A second disk is one that os.replace does not reach; the kill comes when only cleaning up is left."""
    work, output, replace = tmp_path / "disk" / "work", tmp_path / "here" / "store", os.replace

    def within_a_disk(source, goal):
        if ("/disk/" in str(source)) != ("/disk/" in str(goal)):
            raise OSError(18, "Invalid cross-device link")
        replace(source, goal)

    monkeypatch.setattr(os, "replace", within_a_disk)
    monkeypatch.setattr(target_module.LocalTarget, "_same_disk", lambda self: False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target_module.LocalTarget, "finish", lambda self: kill(None))
        precut(folder, output, SETTINGS, work=work)
    shutil.copytree(work, tmp_path / "disk" / "copy")
    precut(folder, output, SETTINGS, work=work)
    assert content(output) == whole and not work.exists()
    replace(tmp_path / "disk" / "copy", work)
    with pytest.raises(ValueError, match="there is a complete chunk store at .*--overwrite"):
        precut(folder, output, SETTINGS, work=work)
    assert not work.exists() and [path.name for path in output.parent.iterdir()] == ["store"]


def test_a_link_stays_a_link(folder, whole, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "store")
    for _ in range(2):
        precut(folder, tmp_path / "link", SETTINGS, overwrite=True)
        assert (tmp_path / "link").is_symlink() and content(tmp_path / "far" / "store") == whole
    with folders.built_aside(tmp_path / "link") as building:
        (building / "x").touch()
    assert (tmp_path / "link").is_symlink() and list(content(tmp_path / "far" / "store")) == ["x"]


def test_two_processes_may_cut_one_video_at_once(folder, tmp_path, monkeypatch):
    (video,) = find_inputs(folder / "v0.mp4")
    job = CutJob(3, video, SETTINGS, tmp_path)
    first = cut_to_spool(job, lambda _: None)
    before = content(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda self: False)  # as the second saw it just before the first was done
    assert cut_to_spool(job, lambda _: None) == first
    assert content(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["0000003"]


def test_two_processes_may_write_one_shard_at_once(tmp_path, monkeypatch):
    with ShardWriter(tmp_path / "shard") as one:
        one.add("a", 0, 1, b"chunk")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with ShardWriter(tmp_path / "shard") as other:
            other.add("a", 0, 1, b"chunk")
    assert list(read_shard(tmp_path / "shard")) == [b"chunk"]
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_an_address_loses_its_store_only(folder, whole, tmp_path, memory):
    work, output = tmp_path / "work", "memory://folders/s"
    memory.pipe("/folders/s/mine.txt", b"mine")
    for options in ({}, {"overwrite": True}, {"restart": True}):
        with pytest.raises(ValueError, match="'memory://folders/s' exists and is not a chunk store"):
            precut(folder, output, SETTINGS, work=work, **options)
    memory.rm("/folders/s/mine.txt")
    precut([("x", folder / "v0.mp4"), ("y", tmp_path / "nowhere")], output, SETTINGS, work=work)
    memory.pipe("/folders/s/mine.txt", b"mine")
    before = {path: memory.cat_file(path) for path in memory.find("/folders")}
    with pytest.raises(Killed):  # before the first shard
        precut([(n, folder / "v1.mp4") for n in "ab"], output, SETTINGS, work=work, overwrite=True, progress=kill)
    with pytest.raises(ValueError, match="2 of the videos are new"):
        precut(folder, output, SETTINGS, work=work, overwrite=True)
    assert {path: memory.cat_file(path) for path in memory.find("/folders")} == before
    precut(folder, output, SETTINGS, work=work, overwrite=True, restart=True)
    there = {path.removeprefix("/folders/s/"): memory.cat_file(path) for path in memory.find("/folders")}
    assert there == {**whole, "mine.txt": b"mine"}


def test_an_address_whose_run_was_killed_at_the_end(folder, tmp_path, monkeypatch, memory):
    work = tmp_path / "work"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(folders, "remove", lambda *_, **__: kill(None))
        precut(folder, "memory://folders/s", SETTINGS, work=work)
    assert work.exists()
    with pytest.raises(ValueError, match="there is a complete chunk store"):
        precut(folder, "memory://folders/s", SETTINGS, work=work)
    assert not work.exists()


def test_a_file_address_makes_its_folders(folder, whole, tmp_path):
    output = tmp_path / "deep" / "er" / "store"
    precut(folder, f"file://{output}", SETTINGS, work=tmp_path / "work")
    assert content(output) == whole and not (tmp_path / "work").exists()
    with pytest.raises(ValueError, match="name another folder with --work"):
        precut(folder, f"file://{output}", SETTINGS, work=output / "work", overwrite=True)
