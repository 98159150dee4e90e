"""The records of a chunk store: a TFDS dataset in ArrayRecord files, one record a chunk.

Anyone can read such a folder with `tfds.builder_from_directory(path).as_data_source("chunks")`. We read it without
TFDS, so that a worker process loads neither it nor protobuf: the wire format of a tf.Example is a few lines.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

OPEN_SHARDS = 512  # each keeps a file open


class RecordError(ValueError):
    """A record or a shard that cannot be read."""


class RecordReader:
    """Random access to the records of a list of shards, opened when first read."""

    def __init__(self, shards: Iterable[Path], lengths: Iterable[int]) -> None:
        self._shards, self._lengths = list(shards), list(lengths)
        self._ends = np.cumsum([0, *self._lengths])[1:]
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def read(self, number: int) -> dict[str, list[bytes] | list[int]]:
        """The features of one record, numbered through all shards."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        if not 0 <= number < self._ends[-1]:
            raise RecordError(f"there is no record {number} among {self._ends[-1]}")
        number -= int(self._ends[shard]) - self._lengths[shard]
        try:
            record = self._open(shard).read([number])[0]
        except (RuntimeError, IndexError) as error:
            raise RecordError(f"shard {self._shards[shard].name} cannot be read there") from error
        return parse_example(record)

    def open_all(self) -> None:
        """Opens every shard, so that a missing or truncated one is found now."""
        for shard in range(len(self._shards)):
            self._open(shard)

    def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
        if shard not in self._readers:
            path = self._shards[shard]
            # The reader itself says nothing of a missing file before it is read.
            if not path.is_file():
                raise RecordError(f"shard {path.name} is missing")
            reader = array_record_module.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
            if not reader.ok() or reader.num_records() != self._lengths[shard]:
                raise RecordError(f"shard {path.name} is truncated or damaged")
            if len(self._readers) >= OPEN_SHARDS:
                # Another thread that reads from it keeps it open until it is done.
                self._readers.pop(next(iter(self._readers)), None)
            self._readers[shard] = reader
            return reader
        return self._readers[shard]


def parse_example(record: bytes) -> dict[str, list[bytes] | list[int]]:
    """The bytes and integer features of a serialized tf.Example."""
    features: dict[str, list[bytes] | list[int]] = {}
    try:
        # Example.features -> Features.feature (a map: key 1, value 2) -> Feature.bytes_list 1 or int64_list 3.
        for _, example in _fields(memoryview(record)):
            for _, entry in _fields(_message(example)):
                pair = dict(_fields(_message(entry)))
                for kind, value in _fields(_message(pair[2])):
                    name = bytes(_message(pair[1])).decode()
                    features[name] = _bytes(_message(value)) if kind == 1 else _integers(_message(value))
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise RecordError("a record is not a tf.Example") from error
    return features


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The (number, value) fields of a protobuf message: varints as int, everything else as bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, place = _varint(message, place)
        else:
            size = {1: 8, 5: 4}[key & 7]
        if place + size > len(message):
            raise IndexError("a field reaches past its message")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message belongs")
    return value


def _bytes(values: memoryview) -> list[bytes]:
    return [bytes(_message(value)) for _, value in _fields(values)]


def _integers(values: memoryview) -> list[int]:
    """Packed or not, as writers differ; negative numbers are stored as 64-bit two's complement."""
    found: list[int] = []
    for _, value in _fields(values):
        if isinstance(value, int):
            found.append(value)
            continue
        place = 0
        while place < len(value):
            number, place = _varint(value, place)
            found.append(number)
    return [number - (1 << 64) if number >> 63 else number for number in found]
