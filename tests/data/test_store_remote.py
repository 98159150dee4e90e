"""A store in an object store reads as the same store on this machine does."""

import os
import pickle
import shutil

import fsspec
import numpy as np
import pytest
from array_record.python import array_record_module

from vidlang.data.chunks import StoreAway, open_store
from vidlang.data.crops import CropBox
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores import remote
from vidlang.data.stores.adopt import adopt
from vidlang.data.stores.array_record import RemoteShard
from vidlang.data.stores.remote import RemoteFolder, open_folder
from vidlang.data.stores.writer import CutVideo, write_store

FPS, FULL = 8, CropBox(0, 0, 32, 48)
FAST = EncodeSettings(preset="ultrafast", crf=12)


def noise(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A store of records, and one of chunk files beside its files."""
    folder = tmp_path_factory.mktemp("local")
    videos = [
        CutVideo(f"v{n}", FPS, 48, 32, [encode_mp4(noise(n, 9), fps=FPS, settings=FAST)] * 2, [9, 9]) for n in (0, 1)
    ]
    write_store(folder / "records", videos, {"fps": FPS})
    for video in videos:
        (folder / "files" / video.name).mkdir(parents=True)
        for number, chunk in enumerate(video.chunks):
            (folder / "files" / video.name / f"{number}.mp4").write_bytes(chunk)
    adopt(folder / "files", folder / "adopted", "index")
    adopt(folder / "files", folder / "whole", "videos")
    return folder


@pytest.fixture
def address(local, monkeypatch, tmp_path):
    """The same folder in the memory of fsspec, with an empty cache."""
    monkeypatch.setenv("VIDLANG_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.put(str(local), "/bucket", recursive=True)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["records", "adopted", "whole"])
def test_a_remote_store_reads_as_the_local_one(name, local, address, tmp_path):
    here, there = open_store(local / name), open_store(f"{address}/{name}", expect={"fps": FPS})
    there = pickle.loads(pickle.dumps(there))
    assert there.videos == here.videos and there.content_hash == here.content_hash
    times_T = np.array([0.0, 0.9, 1.0, 1.13, 2.2])
    for video in here.videos:
        assert [there.read(video, k) for k in range(2 - (name == "whole"))] == [
            here.read(video, k) for k in range(2 - (name == "whole"))
        ]
        expected = here.decode(video, times_T, FULL, (16, 16))
        np.testing.assert_array_equal(there.decode(video, times_T, FULL, (16, 16)), expected)
    there.check()
    assert not list(there.problems())
    kept = {file.name for file in (tmp_path / "cache").iterdir()}
    assert f"{there.header['index']['sha256']}.arrow" in kept
    # The next to open it reads the index from here.
    fsspec.filesystem("memory").rm(f"/bucket/{name}/index.arrow")
    assert open_store(f"{address}/{name}").videos == here.videos


def test_a_remote_folder_is_adopted(local, address, tmp_path):
    report = adopt(f"{address}/files", tmp_path / "store", "index")
    assert report.videos == 2
    store = open_store(tmp_path / "store")
    assert store.content_hash == open_store(local / "adopted").content_hash
    assert store.read("v1", 1) == open_store(local / "adopted").read("v1", 1)


@pytest.mark.parametrize("output", ["file:///{}/store", "memory://bucket/store"])
def test_no_store_is_adopted_to_an_address(output, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="folder of this machine, got the address .*; name a local folder"):
        adopt(local / "files", output.format(tmp_path), "index")
    assert not any(tmp_path.iterdir())


def test_away_is_told_from_missing(address):
    store, system = open_store(f"{address}/records"), fsspec.filesystem("memory")
    (shard,) = (path for path in system.ls("/bucket/records", detail=False) if "array_record" in path)
    system.mv(shard, "/elsewhere")
    with pytest.raises(BrokenVideo, match="missing") as caught:
        store.read("v0", 0)
    assert caught.value.kind == "missing"
    system.mv("/elsewhere", shard)
    system.mv("/bucket/records", "/gone", recursive=True)
    with pytest.raises(StoreAway, match="cannot be reached"):
        open_store(f"{address}/adopted").read("v0", 0) and store.read("v1", 0)
    system.mv("/gone", "/bucket/records", recursive=True)
    assert store.read("v0", 0)


def test_a_failing_network_is_an_error_of_the_system(address, monkeypatch):
    store = open_store(f"{address}/adopted")

    class HttpError(Exception):
        """As clients of object stores have."""

    def failing(*_, **__):
        raise HttpError("503")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", failing)
    with pytest.raises(StoreAway, match="503"):
        store.read("v0", 0)


def test_shards_that_do_not_fit_their_store_are_told(address):
    system = fsspec.filesystem("memory")
    (shard,) = (path for path in system.ls("/bucket/records", detail=False) if "array_record" in path)
    good, rng = system.cat_file(shard), np.random.default_rng(0)
    expected = open_store(f"{address}/records").read("v1", 0)
    ends = [np.arange(200), np.arange(len(good) - 65536, len(good) - 65400), rng.integers(0, len(good), 60)]
    told = 0
    for place in np.concatenate([rng.choice(part, 60) for part in ends]):
        broken = bytearray(good)
        broken[place] ^= 1 << rng.integers(8)
        system.pipe_file(shard, bytes(broken))
        try:
            assert open_store(f"{address}/records").read("v1", 0) == expected
        except BrokenVideo:
            told += 1
    assert told > 5
    for length in (0, 100, 65536, len(good) - 65536, len(good) - 1):
        system.pipe_file(shard, good[:length])
        with pytest.raises(BrokenVideo) as caught:
            open_store(f"{address}/records").read("v1", 0)
        assert caught.value.kind in ("truncated", "damaged")


@pytest.mark.parametrize(
    "options", ["group_size:1", "group_size:7", "group_size:3,uncompressed", "group_size:2,brotli:3"]
)
def test_byte_ranges_read_what_the_library_reads(options, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [0, 1, 100, 65536, 200_000, 131_072 - 64, *rng.integers(0, 90_000, 30).tolist()]
    records = [rng.integers(0, 1 + 255 * (n % 2), size, dtype=np.uint8).tobytes() for n, size in enumerate(sizes)]
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "shard"), options)
    for record in records:
        writer.write(record)
    writer.close()
    shard = RemoteShard(RemoteFolder(f"file://{tmp_path}"), "shard", len(records))
    for number in [*range(len(records)), 3, 0]:
        assert shard.read([number]) == [records[number]], number
    with pytest.raises(BrokenVideo, match="does not hold 5 records"):
        RemoteShard(RemoteFolder(f"file://{tmp_path}"), "shard", 5)


def test_only_the_records_asked_for_are_fetched(tmp_path, monkeypatch):
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "shard"), "group_size:1")
    for n in range(40):
        writer.write(np.random.default_rng(n).bytes(100_000))
    writer.close()
    fetched = []
    read_range = RemoteFolder.read_range
    monkeypatch.setattr(
        RemoteFolder, "read_range", lambda self, name, a, b: fetched.append(b - a) or read_range(self, name, a, b)
    )
    shard = RemoteShard(RemoteFolder(f"file://{tmp_path}"), "shard", 40)
    shard.read([7])
    assert len(fetched) == 3 and sum(fetched) < 350_000 < os.path.getsize(tmp_path / "shard")


def test_what_is_not_installed_or_not_known_is_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot read 'nosuch://x/y'.*nosuch"):
        open_store("nosuch://x/y")

    def absent(address):
        raise ImportError("gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(ValueError, match=r"'gs://b/s' needs the package gcsfs.*pip install 'vidlang\[remote\]'"):
        open_store("gs://b/s")
    with pytest.raises(ValueError, match="a package that is not installed: gcsfs; install what it names"):
        open_store("sftp://b/s")

    def half(address):
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(fsspec.core, "url_to_fs", half)
    with pytest.raises(ValueError, match='needs the package aiohttp.*"requests" and .*pip install aiohttp'):
        open_store("https://b/s")
    with pytest.raises(ValueError, match="there is no chunk store at"):
        monkeypatch.undo()
        open_store(f"file://{tmp_path}/nowhere")


def test_the_cache_keeps_what_was_used_last(address, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(remote, "_used", set())
    monkeypatch.setattr(remote, "CACHE_BYTES", 10_000)
    cache.mkdir()
    old, older, table, half = (cache / name for name in (f"{1:064x}.arrow", f"{2:064x}.arrow", "t.arrow", "x.arrowab"))
    for path, when in ((older, 1), (old, 2), (table, 0), (half, 0)):
        path.write_bytes(bytes(6_000))
        os.utime(path, (when, when))
    first = open_store(f"{address}/records").header["index"]["sha256"]
    assert {path.name for path in cache.iterdir()} == {f"{first}.arrow", old.name, table.name, half.name}
    # Whatever the cap, this process still reads its own.
    monkeypatch.setattr(remote, "CACHE_BYTES", 0)
    second = open_store(f"{address}/adopted").header["index"]["sha256"]
    names = {f"{first}.arrow", f"{second}.arrow", table.name, half.name}
    assert {path.name for path in cache.iterdir()} == names
    # To a process that comes later, what was asked for last is the newest.
    monkeypatch.setattr(remote, "_used", set())
    os.utime(cache / f"{first}.arrow", (5, 5))
    os.utime(cache / f"{second}.arrow", (4, 4))
    open_store(f"{address}/adopted")
    assert (cache / f"{second}.arrow").stat().st_mtime > 5
    monkeypatch.setattr(remote, "CACHE_BYTES", (cache / f"{second}.arrow").stat().st_size)
    monkeypatch.setattr(remote, "_used", set())
    remote._prune(cache)
    assert {path.name for path in cache.iterdir()} == {f"{second}.arrow", table.name, half.name}


def test_an_index_that_another_process_took_from_the_cache_is_fetched_again(address, tmp_path, monkeypatch):
    taken, fetch = [], RemoteFolder.fetch

    def stolen(self, name, target):
        fetch(self, name, target)
        if not taken:
            taken.append(target)
            target.unlink()

    monkeypatch.setattr(RemoteFolder, "fetch", stolen)
    assert len(open_store(f"{address}/records")) == 2 and taken


def test_half_a_download_is_not_kept(address, tmp_path, monkeypatch):
    memory = type(fsspec.filesystem("memory"))
    whole = memory.get_file

    def cut(self, path, target, **options):
        whole(self, path, target, **options)
        os.truncate(target, 10)
        raise OSError("the connection was lost")

    monkeypatch.setattr(memory, "get_file", cut)
    with pytest.raises(StoreAway, match="the connection was lost"):
        open_store(f"{address}/records")
    assert not any((tmp_path / "cache").iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("VIDLANG_CACHE", str(tmp_path / "cache"))
    assert len(open_store(f"{address}/records")) == 2
    shutil.rmtree(remote.cache_folder())
    assert isinstance(open_folder(address), RemoteFolder)
