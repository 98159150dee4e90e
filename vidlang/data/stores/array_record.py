"""One ArrayRecord file read at random through byte ranges, where the library itself only reads local files.

Of the format (Riegeli's records) this is what reading needs. A file is made of blocks of 64 KiB, each begun by a header
of 24 bytes that may fall anywhere into the content. Without them it is a row of chunks: a header of 40 bytes, then
data, here compressed. The last block holds the place of the footer, and the footer the place of every chunk. Riegeli's
own hashes are left out, for a store has a checksum for each of its records.
"""

from __future__ import annotations

import struct
from typing import NoReturn

import numpy as np
import pyarrow as pa

from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.remote import RemoteFolder

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 65536, 24, 40
CODECS = {b"z": "zstd", b"b": "brotli", b"s": "snappy"}
LARGEST = 256 << 20  # of one chunk; a damaged header can claim anything
MAGIC = 0x71930E704FDAE05E  # of the last block


class RemoteShard:
    """Reads the records of a remote file; two reads when opened, one for a record. For any number of threads."""

    def __init__(self, folder: RemoteFolder, name: str, length: int) -> None:
        self._folder, self._name = folder, name
        try:
            size = folder.state(name)[0]
        except FileNotFoundError:
            raise BrokenVideo(f"shard {name} is missing", "missing") from None
        if size < 2 * BLOCK or size % BLOCK:
            raise BrokenVideo(f"shard {name} is truncated: it has {size} bytes", "truncated")
        last = self._chunk(size - BLOCK, size)
        footer, magic = (dict(_numbers(last[0])).get(field, 0) for field in (1, 2)) if last else (0, 0)
        if magic != MAGIC or not 0 < footer < size - BLOCK:
            self._fail("its last block is damaged")
        # After one record about the file, one a chunk: 1 where it starts, 3 how many records it holds.
        entries = [dict(_numbers(entry)) for entry in self._chunk(footer, size - BLOCK)[1:]]
        self._starts = [entry.get(1, 0) for entry in entries] + [footer]
        self._ends = np.cumsum([entry.get(3, 0) for entry in entries])
        if sorted(self._starts) != self._starts or not entries or self._ends[-1] != length:
            self._fail(f"it does not hold {length} records")

    def read(self, numbers: list[int]) -> list[bytes]:
        """The records of these numbers."""
        found = []
        for number in numbers:
            place = int(np.searchsorted(self._ends, number, side="right"))
            records = self._chunk(self._starts[place], self._starts[place + 1])
            found.append(records[number - int(self._ends[place])])  # counted from the chunk's end
        return found

    def _fail(self, what: str) -> NoReturn:
        raise BrokenVideo(f"shard {self._name} is truncated or damaged: {what}", "truncated")

    def _chunk(self, start: int, end: int) -> list[bytes]:
        """The records of the chunk that starts there and is over before `end`."""
        if not 0 <= start < end <= start + LARGEST:
            self._fail(f"a chunk reaches from byte {start} to {end}")
        data = _without_headers(self._folder.read_range(self._name, start, end), start)
        try:
            size, kind_count, decoded = struct.unpack_from("<8xQ8xQQ", data)
            kind, count = kind_count & 255, kind_count >> 8
            body = data[CHUNK_HEADER : CHUNK_HEADER + size]
            if kind != ord("r") or len(body) != size or not count <= decoded + 1 <= LARGEST:
                self._fail(f"the chunk at byte {start} is none of records")
            return _records(body, count, decoded)
        except (struct.error, IndexError, OSError, pa.ArrowException) as error:
            raise BrokenVideo(f"shard {self._name} is damaged at byte {start}") from error


def _without_headers(data: bytes, start: int) -> bytes:
    """The bytes of a range less the headers of the blocks that begin in it."""
    first = -start % BLOCK
    pieces = [data[:first]]
    for place in range(first, len(data), BLOCK):
        pieces.append(data[place + BLOCK_HEADER : place + BLOCK])
    return b"".join(pieces)


def _records(body: bytes, count: int, decoded: int) -> list[bytes]:
    """The records of a chunk: how it is compressed, the length of the sizes, the sizes, the records in a row."""
    codec, (length, place) = body[:1], varint(body, 1)
    sizes_data = _decompress(codec, body[place : place + length], 10 * count)
    values = _decompress(codec, body[place + length :], decoded)
    records, at, place = [], 0, 0
    for _ in range(count):
        size, at = varint(sizes_data, at)
        if place + size > len(values):
            raise IndexError("a record reaches past its chunk")
        records.append(values[place : place + size])
        place += size
    return records


def _decompress(codec: bytes, data: bytes, most: int) -> bytes:
    if codec == b"\0":
        return data
    size, start = varint(data, 0)
    if codec not in CODECS or size > most:
        raise IndexError("a chunk is compressed in an unknown way, or holds more than it may")
    return pa.Codec(CODECS[codec]).decompress(data[start:], size, asbytes=True)


def varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in protobuf's encoding and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise IndexError("a number is longer than 64 bits")


def _numbers(message: bytes) -> list[tuple[int, int]]:
    """The (field, value) pairs of a protobuf message of numbers only; other fields end it."""
    found, place = [], 0
    while place < len(message):
        key, place = varint(message, place)
        if key & 7:
            break
        value, place = varint(message, place)
        found.append((key >> 3, value))
    return found
