"""The records of a chunk store: a TFDS dataset in ArrayRecord files, one record a chunk.

Anyone can read such a folder with `tfds.builder_from_directory(path).as_data_source("chunks")`. We read it without
TFDS, so that a worker process loads neither it nor protobuf: the wire format of a tf.Example is a few lines.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from array_record.python import array_record_module

from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.array_record import RemoteShard
from vidlang.data.stores.remote import Folder, RemoteFolder

OPEN_SHARDS = 512  # each keeps a file open
MOST_FIELDS = 1 << 16  # of a message; a hostile record could hold millions of empty ones
VARINT_BYTES = 10


class RecordError(BrokenVideo):
    """A record or a shard that cannot be read."""

    def __reduce__(self) -> tuple[object, ...]:
        return RecordError, (str(self), self.kind)


class Shard(Protocol):
    """What reads one file of records."""

    def read(self, numbers: list[int]) -> list[bytes]: ...


class RecordReader:
    """Random access to the records of a list of shards, opened when first read; for any number of threads."""

    def __init__(self, folder: Folder, shards: Mapping[str, int]) -> None:
        self._folder, self._names, self._lengths = folder, list(shards), list(shards.values())
        self._ends = np.cumsum([0, *self._lengths])[1:]
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, number: int) -> dict[str, list[bytes] | list[int]]:
        """The features of one record, numbered through all shards."""
        shard, place = self._place(number)
        try:
            record = self._shard(shard).read([place])[0]
        except (RuntimeError, IndexError) as error:
            raise RecordError(f"shard {self._names[shard]} cannot be read there") from error
        return parse_example(record)

    def open_all(self) -> None:
        """Opens every shard, so that a missing or truncated one is found now."""
        for shard in range(len(self._names)):
            self._shard(shard)

    def failures(self) -> Iterator[tuple[range, BrokenVideo]]:
        """Of the shards that do not open: the numbers of their records, and why."""
        for shard, (end, length) in enumerate(zip(self._ends.tolist(), self._lengths, strict=True)):
            try:
                self._shard(shard)
            except BrokenVideo as error:
                yield range(end - length, end), error
            except OSError as error:
                kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
                yield range(end - length, end), RecordError(f"shard {self._names[shard]} cannot be read: {error}", kind)

    def forget(self, number: int) -> None:
        """Closes the shard that holds a record, if it is open: it may have changed under us."""
        with self._lock:
            self._open.pop(self._place(number)[0], None)

    def _place(self, number: int) -> tuple[int, int]:
        if not len(self._ends) or not 0 <= number < self._ends[-1]:
            raise RecordError(f"there is no record {number} among {sum(self._lengths)}", "missing")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard]) - self._lengths[shard])

    def _shard(self, shard: int) -> Shard:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        # Opened outside the lock, for a slow disk must not stop those who read elsewhere; two threads may both open.
        opened = self._opened(shard)
        with self._lock:
            self._open[shard] = opened
            self._open.move_to_end(shard)
            while len(self._open) > OPEN_SHARDS:
                # A thread that reads from it keeps it open until it is done.
                self._open.popitem(last=False)
        return opened

    def _opened(self, shard: int) -> Shard:
        name, length = self._names[shard], self._lengths[shard]
        if isinstance(self._folder, RemoteFolder):
            return RemoteShard(self._folder, name, length)
        path = self._folder.local(name)
        # The reader itself says nothing of a missing file before it is read.
        if not path.is_file():
            raise RecordError(f"shard {name} is missing", "missing")
        try:
            reader = array_record_module.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
            count = reader.num_records() if reader.ok() else -1
        except RuntimeError as error:
            raise RecordError(f"shard {name} cannot be opened", "unreadable") from error
        if count != length:
            raise RecordError(f"shard {name} is truncated or damaged", "truncated")
        return reader


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
                    if kind in (1, 3):
                        features[name] = _bytes(_message(value)) if kind == 1 else _integers(_message(value))
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise RecordError("a record is not a tf.Example") from error
    return features


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The (number, value) fields of a protobuf message: varints as int, everything else as bytes."""
    place = count = 0
    while place < len(message):
        count += 1
        if count > MOST_FIELDS:
            raise IndexError("a message has more fields than any that is read")
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
    value = 0
    for shift in range(0, 7 * VARINT_BYTES, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & ((1 << 64) - 1), place
    raise IndexError("a number is longer than 64 bits")


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
            if len(found) >= MOST_FIELDS:
                raise IndexError("a record has more numbers than any that is read")
            number, place = _varint(value, place)
            found.append(number)
    return [number - (1 << 64) if number >> 63 else number for number in found]
