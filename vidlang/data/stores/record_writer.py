"""Writes the records of a chunk store as a TFDS dataset in ArrayRecord files; record_reader.py reads them.

A shard is written under another name, read back and brought to the disk before it gets its own, so a shard that has
its name is whole. TFDS is needed for the few lines of metadata only; the processes that write shards do not load it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from array_record.python import array_record_module

from vidlang.data.stores.index import checksum
from vidlang.data.stores.record_reader import parse_example

DATASET, SPLIT, VERSION = "video_chunks", "chunks", "1.0.0"
# A shard ends with the first video that brings it to either limit.
CHUNKS_PER_SHARD = 2048  # about 3 GB of house chunks
SHARD_BYTES = 3 << 30


def is_full(chunks: int, size: int) -> bool:
    """Whether a shard of so many chunks and bytes takes no further video."""
    return chunks >= CHUNKS_PER_SHARD or size >= SHARD_BYTES


def shard_name(number: int) -> str:
    """The file of a shard, as TFDS looks for it."""
    return f"{DATASET}-{SPLIT}.array_record-{number:05d}"


class ShardWriter:
    """Writes one shard, in the order given; a context manager that gives the file its name when the block succeeds."""

    def __init__(self, path: Path) -> None:
        # Of this process: one that was taken for dead may write the same shard.
        self._path, self._part = path, path.with_name(f"{path.name}.part-{socket.gethostname()}-{os.getpid()}")
        self._checksums: list[str] = []
        self.records = self.bytes = self.stored = 0
        self._writer = array_record_module.ArrayRecordWriter(str(self._part), "group_size:1")

    def add(self, video: str, chunk: int, frames: int, mp4: bytes) -> str:
        """Appends one record; returns the checksum of its chunk."""
        record = serialize_example({"video": video.encode(), "chunk": chunk, "frames": frames, "mp4": mp4})
        try:
            self._writer.write(record)
        except RuntimeError as error:
            raise OSError(f"writing {self._path.name} failed: {error}") from error
        self._checksums.append(checksum(record))
        self.records += 1
        self.bytes += len(mp4)
        self.stored += len(record)
        return checksum(mp4)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._verify()
                sync(self._part)
                os.replace(self._part, self._path)
                sync(self._path.parent)
        except RuntimeError as failed:
            raise OSError(f"writing {self._path.name} failed: {failed}") from failed
        finally:
            self._part.unlink(missing_ok=True)

    def _verify(self) -> None:
        reader = array_record_module.ArrayRecordReader(str(self._part), "readahead_buffer_size:0")
        if reader.num_records() != self.records:
            raise RuntimeError(f"{self.records} records were written, {reader.num_records()} are there")
        for number, expected in enumerate(self._checksums):
            if checksum(reader.read([number])[0]) != expected:
                raise RuntimeError(f"record {number} reads back as something else")
        reader.close()


def read_shard(path: Path) -> Iterator[bytes]:
    """The chunks of one shard in order."""
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    for number in range(reader.num_records()):
        (mp4,) = parse_example(reader.read([number])[0])["mp4"]
        assert isinstance(mp4, bytes)
        yield mp4
    reader.close()


def stored_bytes(path: Path) -> int:
    """The bytes of a shard's records, which TFDS notes."""
    reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    stored = sum(len(reader.read([number])[0]) for number in range(reader.num_records()))
    reader.close()
    return stored


def write_metadata(folder: Path, lengths: Sequence[int], stored: int) -> None:
    """Makes a folder of shards a TFDS dataset: dataset_info.json and features.json."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"video": tfds.features.Text(), "chunk": np.int64, "frames": np.int64, "mp4": tfds.features.Text()}
    )
    identity = tfds.core.DatasetIdentity(
        name=DATASET, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name="vidlang"
    )
    info = tfds.core.DatasetInfo(
        builder=identity, description="Short H.264 chunks of long videos, in order.", features=features
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=DATASET,
        data_dir=folder,
        split=SPLIT,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )
    split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=list(lengths), num_bytes=stored, filename_template=template)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)


def serialize_example(features: dict[str, bytes | int]) -> bytes:
    """A tf.Example of one value a feature, in the order given: protobuf itself promises no order of a map."""
    entries = []
    for name, value in features.items():
        # Feature.bytes_list 1 or int64_list 3, each with its values in field 1.
        feature = _field(1, _field(1, value)) if isinstance(value, bytes) else _field(3, b"\x08" + _varint(value))
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def _field(number: int, content: bytes) -> bytes:
    return struct.pack("B", number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    if value < 0:
        raise ValueError(f"counts are not negative, got {value}")
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
