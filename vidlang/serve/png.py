"""A PNG file from pixels, with the standard library only."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def encode_png(image_HWC: np.ndarray) -> bytes:
    """The bytes of a PNG of an RGB image, uint8 [H, W, 3]."""
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8 or not image_HWC.size:
        raise ValueError(
            f"a PNG is written from uint8 [H, W, 3] with pixels; found {image_HWC.dtype} {image_HWC.shape}"
        )
    height, width, _ = image_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, no interlacing
    # Filtered bytes compress better or worse than plain ones depending on the picture: keep the smallest.
    data = min((zlib.compress(rows, 9) for rows in _filtered(image_HWC)), key=len)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, payload) for kind, payload in chunks)


def _filtered(image_HWC: np.ndarray) -> list[bytes]:
    """The rows with PNG filters 0 (none), 1 (difference to the left) and 2 (to above), wrapping at 256."""
    left, above = image_HWC.copy(), image_HWC.copy()
    left[:, 1:] -= image_HWC[:, :-1]
    above[1:] -= image_HWC[:-1]
    height = image_HWC.shape[0]
    return [
        np.insert(rows.reshape(height, -1), 0, number, axis=1).tobytes()
        for number, rows in enumerate((image_HWC, left, above))
    ]


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
