"""A store gives back what was written, in any process, or says in one sentence why it cannot."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.crops import CropBox
from vidlang.data.decode import BrokenVideo, decode
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.stores import record_writer
from vidlang.data.stores.writer import CutVideo, write_store

HEIGHT, WIDTH, FPS = 32, 48, 8
FULL = CropBox(0, 0, HEIGHT, WIDTH)
FAST = EncodeSettings(preset="ultrafast", crf=12)
SETTINGS = {"fps": FPS, "note": "made by a test"}


def shade(video, number):
    """A grey level that tells frames of a video apart, over a pattern that tells videos apart."""
    frame_HWC = np.full((HEIGHT, WIDTH, 3), 20 + 6 * number, np.uint8)
    frame_HWC[:, : 8 * (video + 1)] //= 2
    return frame_HWC


def cut(name, video, counts):
    frames = [shade(video, number) for number in range(sum(counts))]
    edges = np.cumsum([0, *counts])
    chunks = [encode_mp4(frames[a:b], fps=FPS, settings=FAST) for a, b in zip(edges, edges[1:], strict=False)]
    return CutVideo(name, FPS, WIDTH, HEIGHT, chunks, counts)


@pytest.fixture(scope="module")
def videos():
    return [cut("kitchen/one", 0, (12, 12, 5)), cut("two", 1, (7,)), cut("drei ü", 2, (12, 12))]


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    original, record_writer.CHUNKS_PER_SHARD = record_writer.CHUNKS_PER_SHARD, 4
    try:
        write_store(path, iter(videos), SETTINGS)
    finally:
        record_writer.CHUNKS_PER_SHARD = original
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_chunks_come_back_byte_for_byte(folder, videos):
    store = open_store(folder)
    assert store.videos == [video.name for video in videos] and len(store) == 3
    assert "two" in store and "three" not in store
    assert store.settings == SETTINGS and "3 videos" in repr(store)
    for video in videos:
        info = store.info(video.name)
        assert (info.fps, info.width, info.height) == (FPS, WIDTH, HEIGHT)
        assert info.frames == sum(video.chunk_frames) and info.duration == info.frames / FPS
        assert store.chunk_frames(video.name).tolist() == list(video.chunk_frames)
        assert [store.read(video.name, k) for k in range(len(video.chunks))] == video.chunks


def test_it_is_a_tfds_dataset(folder, videos):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    source = builder.as_data_source("chunks")
    expected = [(v.name, k, v.chunk_frames[k], chunk) for v in videos for k, chunk in enumerate(v.chunks)]
    found = [(r["video"].decode(), r["chunk"], r["frames"], r["mp4"]) for r in (source[i] for i in range(len(source)))]
    assert found == expected
    assert builder.info.splits["chunks"].shard_lengths == [4, 2]


def test_workers_load_neither_jax_nor_tensorflow(folder):
    program = f"""
import sys
from vidlang.data.chunks import open_store
from vidlang.data.crops import choose_crop
from vidlang.data.frames import choose_times
import vidlang.data.precut
store = open_store({str(folder)!r})
info = store.info("two")
times = choose_times(None, 0.0, info.duration, 3, name="middle")
clip = store.decode("two", times, choose_crop(None, info.height, info.width, name="center"), (16, 16))
assert clip.shape == (3, 16, 16, 3) and clip.any()
heavy = {{"jax", "tensorflow", "tensorflow_datasets", "torch", "google.protobuf"}} & set(sys.modules)
sys.exit(f"loaded: {{heavy}}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_frames_are_addressed_by_time_across_chunks(folder, videos):
    store = open_store(folder)
    crop, size = CropBox(4, 6, 20, 30, flip=True), (24, 20)
    whole = [decode(chunk, np.arange(n), crop, size) for chunk, n in zip(videos[0].chunks, (12, 12, 5), strict=True)]
    whole = np.concatenate(whole)
    rng = np.random.default_rng(0)
    for frames_T in (np.arange(29), np.array([11, 12]), rng.integers(0, 29, 16)):
        for late in (0.0, 0.5, 0.999):
            got = store.decode("kitchen/one", (frames_T + late) / FPS, crop, size)
            np.testing.assert_array_equal(got, whole[frames_T])
    levels = store.decode("kitchen/one", np.arange(29) / FPS, FULL, (32, 48))[:, 5, 40].mean(1)
    np.testing.assert_allclose(levels, 20 + 6 * np.arange(29), atol=3)


@pytest.mark.parametrize("fps", [25, Fraction(24000, 1001)])
def test_the_time_of_a_frame_in_floating_point_shows_that_frame(fps, tmp_path):
    chunks = [
        encode_mp4([shade(0, n % 35) for n in range(a, a + 10)], fps=fps, settings=FAST) for a in range(0, 60, 10)
    ]
    store = write_store(tmp_path / "s", [CutVideo("v", fps, WIDTH, HEIGHT, chunks, [10] * 6)], {})
    clip = store.decode("v", np.arange(60) / float(fps), FULL, (32, 48))
    np.testing.assert_allclose(clip[:, 5, 40].mean(1), 20 + 6 * (np.arange(60) % 35), atol=2)


def test_time_past_the_end_shows_the_last_frame_but_no_clip_starts_there(folder):
    store = open_store(folder)
    clip = store.decode("two", np.array([6 / FPS, 6.9 / FPS, 0.88, 4.0]), FULL, (8, 8))
    assert all((frame == clip[0]).all() for frame in clip)
    with pytest.raises(BrokenVideo, match=r"'two' ends at 0.88 s, the clip starts at 0.90 s"):
        store.decode("two", np.array([0.9, 1.0]), FULL, (8, 8))


@pytest.mark.parametrize("times", [[-0.1], [np.nan], [[0.0]]])
def test_bad_times_have_a_sentence(folder, times):
    with pytest.raises(ValueError, match="times must be a list of seconds"):
        open_store(folder).decode("two", np.array(times), FULL, (8, 8))


def test_pickles_by_path_and_reads_after_a_fork(folder):
    store = open_store(folder)
    expected = store.read("two", 0)
    assert len(pickle.dumps(store)) < 400
    assert pickle.loads(pickle.dumps(store)).read("two", 0) == expected
    reader = store._records()
    if (child := os.fork()) == 0:
        # Readers share a file position with the parent's unless the child opens its own.
        os._exit(0 if store.read("two", 0) == expected and store._records() is not reader else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_content_hash_tells_stores_apart(folder, videos, tmp_path):
    again = write_store(tmp_path / "again", videos, {"other": "settings"})
    assert again.content_hash == open_store(folder).content_hash
    fewer = write_store(tmp_path / "fewer", videos[:2], {})
    assert fewer.content_hash != again.content_hash


def test_every_damage_of_a_record_is_told(copy):
    shard = sorted(copy.glob("*array_record*"))[0]
    good, told = shard.read_bytes(), 0
    expected = open_store(copy).read("kitchen/one", 1)
    rng = np.random.default_rng(0)
    written = np.flatnonzero(np.frombuffer(good, np.uint8))  # the rest is padding
    for place in rng.choice(written, 60):
        broken = bytearray(good)
        broken[place] ^= 1 << rng.integers(8)
        shard.write_bytes(broken)
        try:
            assert open_store(copy).read("kitchen/one", 1) == expected
        except BrokenVideo as error:
            assert "chunk 1 of video 'kitchen/one'" in str(error)
            told += 1
    assert told > 10


def test_checksum_guards_a_chunk_that_reads_well(copy, monkeypatch):
    store = open_store(copy)
    example = store._records().read(0)
    mp4 = bytearray(example["mp4"][0])
    mp4[-20] ^= 1
    monkeypatch.setattr(type(store._records()), "read", lambda self, number: {**example, "mp4": [bytes(mp4)]})
    with pytest.raises(BrokenVideo, match="chunk 0 of video 'kitchen/one' in .*checksum"):
        store.read("kitchen/one", 0)
    with pytest.raises(BrokenVideo, match="chunk 0 of video 'kitchen/one' in .*checksum"):
        store.decode("kitchen/one", np.array([0.0]), FULL, (8, 8))


def test_missing_and_truncated_shards_are_told(copy):
    shard = sorted(copy.glob("*array_record*"))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    with pytest.raises(BrokenVideo, match="array_record-00001 is truncated or damaged"):
        open_store(copy).read("drei ü", 1)
    shard.unlink()
    with pytest.raises(BrokenVideo, match="array_record-00001 is missing"):
        open_store(copy).read("drei ü", 1)
    assert open_store(copy).read("two", 0)


def edit_header(path, **changes):
    header = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**header, **changes}))


def test_what_is_not_a_store_is_told(copy, tmp_path):
    with pytest.raises(ValueError, match="there is no chunk store at .*nowhere"):
        open_store(tmp_path / "nowhere")
    edit_header(copy, videos=7)
    with pytest.raises(ValueError, match="index.arrow does not fit store.json"):
        open_store(copy)
    edit_header(copy, format_version=99)
    with pytest.raises(ValueError, match="format version 99, this vidlang reads 1"):
        open_store(copy)
    (copy / "store.json").write_text("{")
    with pytest.raises(ValueError, match="store.json cannot be read"):
        open_store(copy)
    (copy / "store.json").unlink()
    with pytest.raises(ValueError, match="is not a chunk store: it has no store.json"):
        open_store(copy)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:100]), lambda path: path.unlink()])
def test_damaged_index_is_told(copy, damage):
    damage(copy / "index.arrow")
    with pytest.raises(ValueError, match="damaged"):
        open_store(copy)


def test_unknown_names_and_chunks_are_told(folder):
    store = open_store(folder)
    with pytest.raises(ValueError, match="no video 'kitchen/on' .did you mean 'kitchen/one'.* among the 3"):
        store.info("kitchen/on")
    with pytest.raises(ValueError, match="chunk 3 asked of video 'kitchen/one', which has chunks 0..2"):
        store.read("kitchen/one", 3)


def test_a_failed_write_leaves_nothing(videos, tmp_path):
    def failing():
        yield videos[0]
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError, match="went away"):
        write_store(tmp_path / "store", failing(), {})
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_being_written_does_not_open(videos, tmp_path):
    def watching():
        yield videos[0]
        (building,) = tmp_path.iterdir()
        with pytest.raises(ValueError, match="not a chunk store"):
            open_store(building)
        yield videos[1]

    assert len(write_store(tmp_path / "store", watching(), {})) == 2


def test_only_stores_are_overwritten_and_only_when_asked(videos, tmp_path):
    path = tmp_path / "store"
    path.mkdir()  # an empty folder is as good as none
    write_store(path, videos[:1], {})
    with pytest.raises(ValueError, match="there is a complete chunk store at .*already"):
        write_store(path, videos[1:], {})
    assert open_store(path).videos == ["kitchen/one"]
    assert write_store(path, videos[1:], {}, overwrite=True).videos == ["two", "drei ü"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]
    (path / "store.json").unlink()
    with pytest.raises(ValueError, match="exists and is not a chunk store"):
        write_store(path, videos, {}, overwrite=True)


def test_bad_videos_are_told(videos, tmp_path):
    with pytest.raises(ValueError, match="at least one video"):
        write_store(tmp_path / "store", [], {})
    with pytest.raises(ValueError, match="two videos are called 'two'"):
        write_store(tmp_path / "store", [videos[1], videos[1]], {})
    with pytest.raises(ValueError, match="'v' has 0 chunks"):
        write_store(tmp_path / "store", [CutVideo("v", FPS, 4, 4, [], [])], {})
    assert not list(tmp_path.iterdir())


def test_settings_may_be_a_dataclass(videos, tmp_path):
    assert write_store(tmp_path / "store", videos[:1], FAST).settings["preset"] == "ultrafast"


def test_index_is_written_in_batches(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("vidlang.data.stores.index.ROWS_AT_ONCE", 2)
    many = [CutVideo(f"v{n}", FPS, WIDTH, HEIGHT, videos[1].chunks, (7,)) for n in range(5)]
    store = write_store(tmp_path / "store", many, {})
    assert store.videos == [f"v{n}" for n in range(5)]
    assert store.read("v4", 0) == videos[1].chunks[0]
    with pa.memory_map(str(tmp_path / "store" / "index.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 3
