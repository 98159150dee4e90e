"""Videos are found wherever they lie, and each has the name that was promised."""

import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from absl import logging

from vidlang.data.chunks import open_store
from vidlang.data.cutting import inputs as inputs_module
from vidlang.data.cutting.inputs import find_inputs
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.precut import PrecutSettings, precut

FAST = EncodeSettings(preset="ultrafast")
SETTINGS = PrecutSettings(chunk_seconds=1, fps=4, short_side=16, encode=FAST)


@pytest.fixture
def folder(tmp_path):
    for name in ("b/two.mp4", "a one.MP4", "b/c/three.mkv", ".hidden.mp4", ".trash/x.mp4", "notes.md", "b/x.json"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"1234")
    return tmp_path / "in"


@pytest.fixture
def bucket():
    """A folder on an object store that lives in memory, with two real videos."""
    system = fsspec.filesystem("memory")
    frames = [np.full((16, 16, 3), 9 * k, np.uint8) for k in range(6)]
    for number, name in enumerate(("one.mp4", "deep/two.mp4", "readme.md")):
        system.pipe(f"/bucket/{name}", encode_mp4(frames[number:], fps=4, settings=FAST))
    system.pipe("/bucket/list.csv", b"name,path\nfirst,one.mp4\n,memory://bucket/deep/two.mp4\n")
    yield system
    system.rm("/", recursive=True)


def found(inputs):
    return [(video.name, video.path) for video in find_inputs(inputs)]


def test_a_folder(folder):
    names = [("a one", "a one.MP4"), ("b/c/three", "b/c/three.mkv"), ("b/two", "b/two.mp4")]
    assert found(folder) == found(str(folder)) == [(name, str(folder / file)) for name, file in names]
    assert find_inputs(folder)[0].state == (4, os.stat(folder / "a one.MP4").st_mtime_ns)


def test_links_are_followed_once_and_stores_left_out(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.mp4").write_bytes(b"1")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "second").symlink_to(tmp_path / "elsewhere")
    make_stores(folder)
    names = ["a one", "b/c/three", "b/two", "link/far"]
    assert [name for name, _ in found(folder)] == names
    assert [name for name, _ in found(f"{folder}/**/*.m[pk][4v]")] == names[1:]
    (folder / "z").symlink_to(folder / "b")
    (folder / "a").symlink_to(folder / "b" / "c")
    assert [name for name, _ in found(folder)] == names
    assert [name for name, _ in found(f"{folder}/*/*.mp4")] == ["b/two", "link/far"]


def make_stores(folder):
    """A store and an unfinished one, each with a chunk."""
    for name, content in STORES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


STORES = {
    "store/store.json": '{"format_version": 1}',
    "store/v/0.mp4": "1",
    "new.partial/run.json": '{"settings": {}, "inputs": ""}',
    "new.partial/spool/0/0.mp4": "1",
}


def test_files_of_others_called_as_a_stores_hide_nothing(folder, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda *words: said.append(words[0] % words[1:]))
    make_stores(folder)
    found(folder)
    for name, part in zip(sorted(said), ("new.partial", "store"), strict=True):
        assert f"{part}' is left out" in name
    for content in ('{"name": "shop"}', "[1]", "no json", "\ud83d".encode("utf-8", "surrogatepass")):
        for name in ("store/store.json", "new.partial/run.json"):
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert [name for name, _ in found(folder)][-2:] == ["new.partial/spool/0/0", "store/v/0"]
        assert len(found(f"{folder}/**/*.mp4")) == 3


def test_a_name_that_is_no_text_fails_alone(tmp_path):
    frames = [np.full((16, 16, 3), 9 * k, np.uint8) for k in range(3)]
    for name in (b"good.mp4", b"b\xfcd.mp4"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"in", name))).parent.mkdir(exist_ok=True)
        with open(os.path.join(os.fsencode(tmp_path), b"in", name), "wb") as file:
            file.write(encode_mp4(frames, fps=4, settings=FAST))
    report = precut(tmp_path / "in", tmp_path / "store", SETTINGS)
    (failure,) = report.failed
    assert report.done == ["good"] and failure.kind == "unsupported" and failure.name == r"b\udcfcd"
    assert r"b\udcfcd.mp4' is not UTF-8 text" in failure.reason
    assert json.loads((tmp_path / "store" / "failed.jsonl").read_text())["name"] == failure.name


@pytest.mark.parametrize(
    "name", ["a//b", "./a", "a/.", ".", "..", "a/../b", "/a", "a/", "", "ä" * 126, "a/" + 252 * "x"]
)
def test_names_that_are_no_plain_path_are_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a video"):
        find_inputs([(name, "x.mp4")])
    assert find_inputs([("ä" * 125 + "/" + 251 * "x", "x.mp4")])


def test_a_pattern(folder):
    assert found(f"{folder}/b/*") == [("two", f"{folder}/b/two.mp4"), ("x", f"{folder}/b/x.json")]
    assert [name for name, _ in found(f"{folder}/**/*.mp4")] == ["b/two"]


def test_one_file(folder):
    assert found(folder / "b" / "two.mp4") == [("two", str(folder / "b" / "two.mp4"))]


@pytest.mark.parametrize(
    "name, content",
    [
        ("l.csv", "path,name,other\nb/two.mp4,second,1\n\nb/c/three.mkv,,2\n"),
        ("l.csv", "\ufeffname,path\nsecond,b/two.mp4\n,b/c/three.mkv\n"),
        ("l.tsv", "name\tpath\nsecond\tb/two.mp4\n\tb/c/three.mkv\n"),
        ("l.csv", 'path,name\n"b/two.mp4","second"\nb/c/three.mkv,\n'),
    ],
)
def test_lists_with_columns(name, content, folder):
    (folder / name).write_text(content)
    assert found(folder / name) == [("second", f"{folder}/b/two.mp4"), ("three", f"{folder}/b/c/three.mkv")]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ('path,name\na.mp4,"a\nb.mp4,b\nc.mp4,c\n', "line 4 of .*unexpected end of data"),
        ('path,name\n"a".mp4,a\n', "line 2 of .*expected after"),
        ('path,name\n"a.mp4\nb.mp4",a\n', "line 3 of .*a line ends inside"),
        ("path,name\n" + "x" * 200_000 + ",a\n", "line 2 of .*field larger than"),
        ("path,name\na.mp4,a\nb.mp4\n", "line 3 of .*has 1 fields, the first line 2"),
        ("path,name\na.mp4,a,b\n", "line 2 of .*has 3 fields, the first line 2"),
        ("path,path\na.mp4,a\n", "needs one 'path'"),
        ("", "needs one 'path'"),
    ],
)
def test_a_list_that_is_no_table_says_where(content, sentence, tmp_path):
    (tmp_path / "l.csv").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        find_inputs(tmp_path / "l.csv")


def test_a_list_of_lines(folder):
    (folder / "l.txt").write_text(f"b/two.mp4\n\n  {folder}/notes.md  \n")
    assert found(folder / "l.txt") == [("notes", f"{folder}/notes.md"), ("two", f"{folder}/b/two.mp4")]


def test_files_of_a_folder_that_would_share_a_name_keep_their_suffix(folder):
    (folder / "b" / "two.mkv").write_bytes(b"")
    assert [name for name, _ in found(folder)] == ["a one", "b/c/three", "b/two.mkv", "b/two.mp4"]
    assert [name for name, _ in found(f"{folder}/b/two*")] == ["two.mkv", "two.mp4"]


def test_an_object_store(bucket):
    both = [("deep/two", "memory:///bucket/deep/two.mp4"), ("one", "memory:///bucket/one.mp4")]
    assert found("memory://bucket") == both
    assert found("memory://bucket/*.mp4") == both[1:]
    for name, content in STORES.items():
        bucket.pipe(f"/bucket/{name}", content.encode())
    bucket.pipe(f"/bucket/spool/{16 * 'a'}/0000001/chunks/0.mp4", b"1")
    assert found("memory://bucket") == found("memory://bucket/**/*.mp4") == both
    assert found("memory://bucket/*/*.mp4") == both[:1]
    assert found("memory://bucket/one.mp4") == both[1:]
    listed = [("first", "memory://bucket/one.mp4"), ("two", "memory://bucket/deep/two.mp4")]
    assert found("memory://bucket/list.csv") == listed


def test_mistakes_have_a_sentence(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("file,name\na,b\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("ü.mp4".encode("latin1"))
    cases = [
        (tmp_path / "nowhere", "there is no folder '.*nowhere', nor a file"),
        (tmp_path / "empty", "there are no videos in '.*empty': no file outside of chunk stores ends in"),
        (f"{tmp_path}/x*", "no file matches the pattern"),
        (tmp_path / "bad.csv", r"has columns \['file', 'name'\]; it needs one 'path'"),
        (tmp_path / "none.txt", "names no video"),
        (tmp_path / "latin.txt", "is not UTF-8 text"),
        ([], "the list is empty"),
        ([("x", "a"), ("x", "b")], "'a' and 'b' would both be called 'x'; .* in a csv list with"),
        ([("../x", "a")], "'../x' cannot be the name of a video"),
        ([("", "a")], "'' cannot be the name of a video"),
        ([("\udcfc", "x.mp4")], "cannot be the name of a video"),
        ([("x", "a\0")], "cannot be the name of a video"),
        ("memory://nobucket", "there are no videos at 'memory://nobucket'"),
        ("nosuch://bucket", "'nosuch://bucket' cannot be read: .*nosuch"),
    ]
    for place, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            find_inputs(place)


def test_a_missing_package_is_named(monkeypatch):
    def missing(address):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"needs the package gcsfs, which is not installed; pip install 'vidlang\[rem"):
        find_inputs("gs://bucket/videos")


def test_remote_videos_and_a_remote_store(bucket, tmp_path):
    """Cut from an object store to this machine, and to the object store: the same files."""
    work = tmp_path / "work"
    assert precut("memory://bucket", tmp_path / "store", SETTINGS).done == ["deep/two", "one"]
    with pytest.raises(ValueError, match="name a folder for it with --work"):
        precut("memory://bucket", "memory://out/store", SETTINGS)
    with pytest.raises(ValueError, match="has the layout 'records', got 'index'"):
        precut("memory://bucket", "memory://out/store", SETTINGS, work=work, layout="index")
    precut("memory://bucket", "memory://out/store", SETTINGS, work=work)
    here = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    there = {Path(name).name: bucket.cat_file(name) for name in bucket.find("/out/store")}
    assert there == here and [entry.name for entry in tmp_path.iterdir()] == ["store"]
    with pytest.raises(ValueError, match="there is a complete chunk store at 'memory://out/store' already"):
        precut("memory://bucket", "memory://out/store", SETTINGS, work=work)
    precut("memory://bucket/one.mp4", "memory://out/store", SETTINGS, work=work, overwrite=True)
    assert list(open_store("memory://out/store").videos) == ["one"]


def test_a_store_that_stutters_is_asked_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_module, "FIRST_PAUSE", 0.01)
    calls, fetch = [], inputs_module._fetch

    def stuttering(path, target, sign):
        calls.append(path)
        if "one" in path and len(calls) < 3:
            target.write_bytes(b"half")
            raise TimeoutError("try later")
        fetch(path, target, sign)

    monkeypatch.setattr(inputs_module, "_fetch", stuttering)
    assert precut([("x", "memory://bucket/one.mp4")], tmp_path / "s", SETTINGS).done == ["x"] and len(calls) == 3
    pairs = [("x", "memory://bucket/one.mp4"), ("y", "memory://bucket/gone.mp4")]
    (failure,) = precut(pairs, tmp_path / "t", SETTINGS).failed
    assert (failure.name, failure.kind) == ("y", "missing")
    monkeypatch.setattr(inputs_module, "_fetch", lambda *arguments: (_ for _ in ()).throw(TimeoutError("try later")))
    with pytest.raises(ValueError, match="cannot fetch 'memory://bucket/one.mp4': try later"):
        precut(pairs[:1], tmp_path / "u", SETTINGS)
