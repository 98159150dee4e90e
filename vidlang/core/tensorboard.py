"""TensorBoard event files without TensorFlow: the record framing and the three protobuf messages scalars need.

An event file is a sequence of records: length (uint64), masked CRC of the length, payload, masked CRC of the payload.
The payload is an `Event` message: wall_time (1, double), step (2, int64), then file_version (3, string) or summary
(5: repeated value (1): tag (1, string), simple_value (2, float)) or session_log (7: status (1, enum)).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated and offset as record files store it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


class EventFile:
    """Appends scalars to a new event file in `folder`; TensorBoard joins the files of one folder."""

    def __init__(self, folder: Path, *, purge_step: int = 0) -> None:
        """`purge_step` > 0 makes TensorBoard forget what an interrupted run wrote from that step on."""
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")
        self._record(0, _bytes_field(3, b"brain.Event:2"))
        if purge_step:
            start = _varint(1 << 3) + _varint(1)  # SessionLog.status = START
            self._record(purge_step, _bytes_field(7, start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event with all `values` at `step`."""
        summary = b"".join(
            _bytes_field(1, _bytes_field(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))
            for tag, value in values.items()
        )
        self._record(step, _bytes_field(5, summary))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _record(self, step: int, content: bytes) -> None:
        event = _varint(1 << 3 | 1) + struct.pack("<d", time.time()) + _varint(2 << 3) + _varint(step) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + struct.pack("<I", masked_crc(length)))
        self._file.write(event + struct.pack("<I", masked_crc(event)))
