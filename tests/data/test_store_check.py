"""Checking finds everything that is wrong with a store, and reading says what kind of wrong it met."""

import contextlib
import json
import shutil
import threading
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data.chunks import StoreAway, open_store
from vidlang.data.crops import CropBox
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.array_record import RemoteShard
from vidlang.data.stores.index import ContentHash, stamp
from vidlang.data.stores.remote import RemoteFolder
from vidlang.data.stores.writer import CutVideo, write_store

HEIGHT, WIDTH, FPS = 32, 48, 8
FULL, SIZE = CropBox(0, 0, HEIGHT, WIDTH), (16, 16)
FAST = EncodeSettings(preset="ultrafast", crf=12)
COUNTS = {"one": (6, 6, 3), "two": (4,)}


def cut(name, seed, counts, size=(HEIGHT, WIDTH)):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (sum(counts), *size, 3), dtype=np.uint8)
    edges = np.cumsum([0, *counts])
    chunks = [encode_mp4(frames[a:b], fps=FPS, settings=FAST) for a, b in zip(edges, edges[1:], strict=False)]
    return CutVideo(name, FPS, size[1], size[0], chunks, counts)


@pytest.fixture(scope="module")
def videos():
    return [cut(name, seed, counts) for seed, (name, counts) in enumerate(COUNTS.items())]


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, videos, {"fps": FPS})
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def problems(path, **options):
    return [(found.video, found.chunk, found.kind) for found in open_store(path).problems(**options)]


def edit_header(path, **changes):
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**header, **changes}))


def edit_index(path, change):
    """Changes rows of the index, with a store.json that vouches for them."""
    with pa.memory_map(str(path / "index.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        rows, schema = table.to_pylist(), table.schema
    change(rows)
    content = ContentHash()
    for row in rows:
        content.add(row)
    with pa.OSFile(str(path / "index.new"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    (path / "index.new").replace(path / "index.arrow")
    edit_header(path, index=stamp(path / "index.arrow"), content_hash=content.hexdigest(), videos=len(rows))


def test_a_sound_store_has_no_problem(folder):
    lines = []
    assert not problems(folder, progress=lines.append)
    assert lines == ["[2/2] videos checked, 0 problems"]
    assert not problems(folder, workers=2)


def test_chunks_that_are_not_what_the_index_says_are_found(videos, tmp_path):
    swapped = CutVideo("one", FPS, WIDTH, HEIGHT, [videos[0].chunks[k] for k in (0, 2, 1)], (6, 6, 3))
    large = cut("large", 5, (4,), size=(40, 64))
    large = CutVideo("large", FPS, WIDTH, HEIGHT, large.chunks, large.chunk_frames)
    hollow = bytearray(videos[1].chunks[0])
    first = hollow.index(b"mdat") + 4
    hollow[first:] = bytes(len(hollow) - first)
    zeros = CutVideo("zeros", FPS, WIDTH, HEIGHT, [bytes(hollow)], (4,))
    with contextlib.suppress(ValueError):  # a writer may well refuse them
        write_store(tmp_path / "s", [swapped, large, zeros], {})
        assert problems(tmp_path / "s") == [
            ("one", 1, "damaged"),
            ("one", 2, "damaged"),
            ("large", 0, "damaged"),
            ("zeros", 0, "damaged"),
        ]
        store = open_store(tmp_path / "s")
        with pytest.raises(BrokenVideo, match="chunk 1 of video 'one' .* not as the index says"):
            store.decode("one", np.array([11 / FPS]), FULL, SIZE)
        return
    pytest.fail("the store was refused")


def test_damage_is_found_where_it_is(copy, videos):
    (shard,) = copy.glob("*array_record*")
    content, chunk = bytearray(shard.read_bytes()), videos[0].chunks[1]
    place = RemoteShard(RemoteFolder(f"file://{copy}"), shard.name, 4)._starts[1] + len(chunk) // 2
    content[place] ^= 1
    shard.write_bytes(content)
    assert problems(copy) == problems(copy, workers=2) == [("one", 1, "damaged")]
    shard.write_bytes(content[:-70000])
    assert problems(copy) == problems(copy, workers=2) == [("", -1, "truncated")]
    assert next(open_store(copy).problems()).reason.endswith("damaged, and with it 4 chunks of 2 videos")
    shard.unlink()
    assert problems(copy) == [("", -1, "missing")]


def test_of_a_broken_shard_the_others_are_still_checked(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("vidlang.data.stores.record_writer.CHUNKS_PER_SHARD", 3)
    damaged = CutVideo("two", FPS, WIDTH, HEIGHT, videos[1].chunks, (3,))  # it holds four
    write_store(tmp_path / "s", [videos[0], damaged], {})
    first, _ = sorted((tmp_path / "s").glob("*array_record*"))
    first.write_bytes(first.read_bytes()[:-70000])
    found = list(open_store(tmp_path / "s").problems())
    assert [(problem.video, problem.chunk, problem.kind) for problem in found] == [
        ("", -1, "truncated"),
        ("two", 0, "damaged"),
    ]
    assert first.name in found[0].reason and "3 chunks of 1 video" in found[0].reason


def test_many_broken_chunks_of_one_shard_are_told_in_a_few_lines(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("vidlang.data.stores.record_writer.CHUNKS_PER_SHARD", 9)
    wrong = [CutVideo(f"v{k:02}", FPS, WIDTH, HEIGHT, videos[1].chunks * 3, (3, 3, 3)) for k in range(6)]  # they hold 4
    write_store(tmp_path / "s", wrong, {})
    lines: list[str] = []
    found = list(open_store(tmp_path / "s").problems(lines.append))
    assert lines[-1] == "[6/6] videos checked, 18 problems"
    first = [("v00", 0), ("v00", 1), ("v00", 2), ("v01", 0), ("", -1)]
    second = [("v03", 0), ("v03", 1), ("v03", 2), ("v04", 0), ("", -1)]
    assert [(problem.video, problem.chunk) for problem in found] == first + second
    assert found[4].reason.endswith("00000: the same of 5 chunks of 2 videos more, up to chunk 2 of 'v02'")
    assert found[9].reason.endswith("00001: the same of 5 chunks of 2 videos more, up to chunk 2 of 'v05'")


@pytest.mark.parametrize(
    "settings",
    [
        {"fps": 30, "chunk_seconds": 0.75},
        {"fps": "24000/1001"},
        {"fps": "8/0"},
        {"fps": FPS, "chunk_seconds": 0.625},
        {"fps": FPS, "chunk_seconds": 15},
        {"fps": FPS, "chunk_seconds": None},
    ],
)
def test_settings_that_are_not_those_of_the_chunks_are_found(settings, copy):
    edit_header(copy, settings={"fps": FPS, "chunk_seconds": 0.75})
    assert not problems(copy)
    edit_header(copy, settings=settings)
    assert set(problems(copy)) == {("", -1, "damaged")}


def test_a_fault_of_the_check_itself_ends_no_check(copy, monkeypatch):
    def failing(content, *_):
        raise ValueError("does not lie inside a frame")

    monkeypatch.setattr("vidlang.data.stores.check.decode", failing)
    assert problems(copy) == [("one", k, "unsupported") for k in range(3)] + [("two", 0, "unsupported")]


def test_what_lies_beside_the_records_is_checked(copy):
    good = open_store(copy).content_hash
    edit_header(copy, content_hash="0" * 32)
    assert problems(copy) == [("", -1, "damaged")]
    edit_header(copy, content_hash=good)
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["3"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    assert problems(copy) == [("", -1, "damaged")]
    (copy / "dataset_info.json").unlink()
    assert problems(copy) == [("", -1, "missing")]


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 14},
        {"chunk_frames": [6, 5, 4]},
        {"chunks": 2},
        {"chunks": 5},
        {"width": 46},
        {"fps": 0.0},
        {"duration": -1.0},
        {"first_record": 1},
        {"video": "other"},
        {"checksum": ["0" * 32] * 3},
    ],
)
def test_an_index_that_does_not_fit_is_found(change, copy):
    assert not problems(copy)
    edit_index(copy, lambda rows: rows[0].update(change))
    assert problems(copy)


def test_a_box_that_fits_the_index_and_not_the_frames_is_a_broken_video(copy):
    edit_index(copy, lambda rows: rows[0].update(width=100, height=200))
    store = open_store(copy)
    with pytest.raises(BrokenVideo, match="chunk 0 of video 'one' .*not as the index says"):
        store.decode("one", np.array([0.0]), CropBox(0, 0, 200, 100), SIZE)
    with pytest.raises(ValueError, match="does not lie inside") as caught:
        store.decode("two", np.array([0.0]), CropBox(0, 0, 200, 100), SIZE)
    assert not isinstance(caught.value, BrokenVideo)


def test_a_clip_is_written_where_it_is_wanted(folder):
    store = open_store(folder)
    times_T, out = np.array([0.1, 1.4, 0.8]), np.zeros((3, *SIZE, 3), np.uint8)
    assert store.decode("one", times_T, FULL, SIZE, out=out) is out
    np.testing.assert_array_equal(out, store.decode("one", times_T, FULL, SIZE))
    with pytest.raises(ValueError, match="out must be uint8"):
        store.decode("one", times_T, FULL, SIZE, out=out[:2])
    with pytest.raises(ValueError, match="unknown pixels|pixels"):
        store.decode("one", times_T, FULL, SIZE, pixels="bgr")
    for late in (1.875, 99.0):
        with pytest.raises(BrokenVideo) as caught:
            store.decode("one", np.array([late, 100.0]), FULL, SIZE)
        assert caught.value.kind == "beyond"
    with pytest.raises(BrokenVideo) as caught:
        store.decode("one", times_T, FULL, SIZE, deadline=0.0)
    assert caught.value.kind == "timeout"
    assert store.decode("one", times_T, FULL, SIZE, pixels="yuv420").shape == (3, 24, 16)


def test_a_reader_gets_the_store_it_expects_or_a_sentence(copy):
    edit_header(copy, settings={"fps": "24000/1001", "chunk_seconds": 15, "encode": {"crf": 21, "preset": "medium"}})
    found = open_store(copy)
    good = {"fps": 24000 / 1001, "kind": "records", "content_hash": found.content_hash, "encode": {"crf": 21}}
    assert open_store(copy, expect={**good, "fps": Fraction(24000, 1001), "format_version": 1})
    for name, value in {
        "fps": 30,
        "kind": "videos",
        "content_hash": "x",
        "encode": {"crf": 20},
        "short_side": 288,
    }.items():
        with pytest.raises(ValueError, match=f"not the one that was asked for: .*{name}.*{value!r} was expected"):
            open_store(copy, expect={name: value})


def test_away_is_told_from_broken_and_a_new_mount_is_read_again(copy, videos, monkeypatch):
    store = open_store(copy)
    assert store.read("one", 0)
    copy.rename(copy.with_name("elsewhere"))
    store._records().forget(0)  # as if the handle were stale
    with pytest.raises(StoreAway, match="cannot be reached"):
        store.decode("one", np.array([0.0]), FULL, SIZE)
    copy.mkdir()
    with pytest.raises(StoreAway, match="cannot be reached"):
        store.read("two", 0)
    copy.rmdir()
    copy.with_name("elsewhere").rename(copy)
    assert store.read("two", 0) == videos[1].chunks[0]
    reader = store._records()

    class Stale:
        def read(self, numbers):
            raise RuntimeError("Stale file handle")

    reader._open[0] = Stale()
    assert store.read("one", 1) == videos[0].chunks[1]
    edit_header(copy, content_hash="f" * 32)
    reader._open[0] = Stale()
    monkeypatch.setattr(reader, "_opened", lambda shard: Stale())
    with pytest.raises(ValueError, match="was replaced by another"):
        store.read("one", 1)


def test_threads_read_the_same_records(folder, videos, monkeypatch):
    monkeypatch.setattr("vidlang.data.stores.record_reader.OPEN_SHARDS", 1)
    store, wrong = open_store(folder), []
    expected = {(video.name, k): chunk for video in videos for k, chunk in enumerate(video.chunks)}

    def read(seed):
        rng, keys = np.random.default_rng(seed), list(expected)
        for _ in range(60):
            key = keys[rng.integers(len(keys))]
            try:
                if store.read(*key) != expected[key]:
                    wrong.append(key)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
