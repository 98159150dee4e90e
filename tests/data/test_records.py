"""Records are read as protobuf and TFDS write them, without either."""

import contextlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vidlang.data.stores import record_reader as records
from vidlang.data.stores import record_writer
from vidlang.data.stores.record_reader import RecordError, RecordReader, parse_example
from vidlang.data.stores.record_writer import ShardWriter, read_shard, serialize_example, shard_name
from vidlang.data.stores.remote import LocalFolder


def test_examples_parse_as_protobuf_writes_them():
    from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

    rng = np.random.default_rng(0)
    for _ in range(50):
        example = tf_example.Example()
        expected = {}
        for number in range(rng.integers(0, 5)):
            feature = example.features.feature[f"feature {number}"]
            if rng.integers(2):
                expected[f"feature {number}"] = [rng.bytes(rng.integers(0, 300)) for _ in range(rng.integers(1, 3))]
                feature.bytes_list.value.extend(expected[f"feature {number}"])
            else:
                expected[f"feature {number}"] = rng.integers(-(2**62), 2**62, rng.integers(1, 9)).tolist()
                feature.int64_list.value.extend(expected[f"feature {number}"])
        wire = example.SerializeToString()
        assert parse_example(wire) == expected
        if wire:
            for _ in range(20):
                noisy = bytearray(wire)
                noisy[rng.integers(len(wire))] = rng.integers(256)
                with contextlib.suppress(RecordError):  # noise may parse or be refused, and nothing else
                    parse_example(bytes(noisy)[: rng.integers(1, len(wire) + 1)])


def write_shards(folder, contents, length):
    """Shards of `length` records each; name to number of records."""
    shards = {}
    for number, first in enumerate(range(0, len(contents), length)):
        with ShardWriter(folder / shard_name(number)) as writer:
            for place in range(first, min(first + length, len(contents))):
                writer.add("video", place, 1, contents[place])
        shards[shard_name(number)] = writer.records
    return shards


def test_records_are_numbered_through_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "OPEN_SHARDS", 2)
    contents = [np.random.default_rng(n).bytes(50 + n) for n in range(11)]
    shards = write_shards(tmp_path, contents, 3)
    assert list(shards.values()) == [3, 3, 3, 2]
    reader = RecordReader(LocalFolder(tmp_path), shards)
    for number in [*range(11), 10, 0, 5]:
        assert reader.read(number) == {"video": [b"video"], "chunk": [number], "frames": [1], "mp4": [contents[number]]}
    for number in (-1, 11):
        with pytest.raises(RecordError, match=f"no record {number} among 11"):
            reader.read(number)


def test_the_shards_read_last_stay_open_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "OPEN_SHARDS", 2)
    opened = []
    original = RecordReader._opened
    monkeypatch.setattr(RecordReader, "_opened", lambda self, shard: opened.append(shard) or original(self, shard))
    reader = RecordReader(LocalFolder(tmp_path), write_shards(tmp_path, [b"a"] * 4, 1))
    for number in (0, 1, 0, 2, 0, 2, 1):
        reader.read(number)
        assert len(reader._open) <= 2
    assert opened == [0, 1, 2, 1]  # 0 was read again before 2 came, so 1 had to go
    reader.forget(1)
    reader.read(1)
    assert opened == [0, 1, 2, 1, 1]


def test_threads_may_open_and_close_shards_under_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "OPEN_SHARDS", 1)
    contents = [bytes([number]) * 100 for number in range(12)]
    reader, wrong = RecordReader(LocalFolder(tmp_path), write_shards(tmp_path, contents, 2)), []

    def read(seed):
        for number in np.random.default_rng(seed).integers(0, 12, 150).tolist():
            try:
                if reader.read(number)["mp4"] != [contents[number]]:
                    wrong.append(number)
                if number == 5:
                    reader.forget(number)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff" * 2_000_000,  # a number without an end
        b"\x0a" + b"\x80" * 1_000_000 + b"\x01",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # longer than anything
        b"\x08\x00" * 1_000_000,  # a million fields
        b"\x0a\x00" * 1_000_000,
        b"\x0b" * 100,  # groups, which nobody writes
    ],
)
def test_a_hostile_record_is_refused_at_once(hostile):
    start = time.process_time()
    with pytest.raises(RecordError, match="not a tf.Example"):
        parse_example(hostile)
    assert time.process_time() - start < 1


def test_a_number_list_without_end_is_refused():
    values = b"\x01" * 200_000
    wire = b""
    for number, content in ((1, values), (3, None), (2, None), (1, None), (1, None)):
        content = wire if content is None else content
        name = b"\x0a\x01a" if number == 2 else b""
        size = len(content)
        wire = name + bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content
    with pytest.raises(RecordError, match="not a tf.Example"):
        parse_example(wire)


def test_own_examples_are_what_protobuf_reads():
    from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

    for chunk in (0, 1, 127, 128, 300, 2**40):
        features = {"video": "drei ü".encode(), "chunk": chunk, "frames": 450, "mp4": bytes(range(256)) * 3}
        wire = serialize_example(features)
        example = tf_example.Example.FromString(wire)
        found = {
            name: list(f.bytes_list.value) or list(f.int64_list.value) for name, f in example.features.feature.items()
        }
        assert found == parse_example(wire) == {name: [value] for name, value in features.items()}


def test_equal_records_make_equal_shards(tmp_path):
    contents = [np.random.default_rng(n).bytes(5000) for n in range(20)]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder, contents, 20)
    assert (tmp_path / "one" / shard_name(0)).read_bytes() == (tmp_path / "other" / shard_name(0)).read_bytes()
    assert list(read_shard(tmp_path / "one" / shard_name(0))) == contents


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path / "shard") as writer:
        writer.add("video", 0, 1, b"content")
        assert [entry.name.startswith("shard.part-") for entry in tmp_path.iterdir()] == [True]
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_disk_that_garbles_is_told(tmp_path, monkeypatch):
    garbled = iter(range(1000))
    monkeypatch.setattr(record_writer, "checksum", lambda content: str(next(garbled)))
    with pytest.raises(OSError, match="reads back as something else"), ShardWriter(tmp_path / "shard") as writer:
        writer.add("video", 0, 1, b"content")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path):
    """A limit on the size of files stands in for the disk."""
    program = """
import os, resource, sys
from pathlib import Path
from vidlang.data.stores.record_writer import ShardWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with ShardWriter(Path(sys.argv[1])) as writer:
        for number in range(50):
            writer.add("video", number, 1, os.urandom(20_000))
except OSError as error:
    sys.exit("writing shard failed" not in str(error))
sys.exit("it was not told")
"""
    result = subprocess.run([sys.executable, "-c", program, tmp_path / "shard"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
