"""Records are read as protobuf and TFDS write them, without either."""

import contextlib

import numpy as np
import pytest

from vidlang.data import record_writer, records
from vidlang.data.record_writer import RecordWriter
from vidlang.data.records import RecordError, RecordReader, parse_example


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


def test_records_are_numbered_through_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 3)
    monkeypatch.setattr(records, "OPEN_SHARDS", 2)
    writer = RecordWriter(tmp_path)
    contents = [np.random.default_rng(n).bytes(50 + n) for n in range(11)]
    for number, content in enumerate(contents):
        writer.add("video", number, 1, content)
    shards = writer.close()
    assert list(shards.values()) == [3, 3, 3, 2]
    reader = RecordReader([tmp_path / name for name in shards], shards.values())
    for number in [*range(11), 10, 0, 5]:
        assert reader.read(number) == {"video": [b"video"], "chunk": [number], "frames": [1], "mp4": [contents[number]]}
    for number in (-1, 11):
        with pytest.raises(RecordError, match=f"no record {number} among 11"):
            reader.read(number)


def test_full_last_shard_is_not_followed_by_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "CHUNKS_PER_SHARD", 2)
    writer = RecordWriter(tmp_path)
    for number in range(4):
        writer.add("video", number, 1, b"content")
    assert list(writer.close().values()) == [2, 2]
