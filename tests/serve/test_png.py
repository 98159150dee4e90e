"""The PNG writer loses nothing, and other readers agree."""

import struct
import zlib

import av
import numpy as np
import pytest

from vidlang.serve.png import encode_png


def decode_by_hand(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        payload, check = png[at + 8 : at + 8 + length], png[at + 8 + length : at + 12 + length]
        assert struct.unpack(">I", check)[0] == zlib.crc32(kind + payload)
        chunks[kind], at = payload, at + 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    data, rows, filters = zlib.decompress(chunks[b"IDAT"]), [], set()
    for y in range(height):
        line = data[y * (3 * width + 1) : (y + 1) * (3 * width + 1)]
        filters.add(line[0])
        row = list(line[1:])
        for i in range(len(row)):
            before = {0: 0, 1: row[i - 3] if i >= 3 else 0, 2: rows[-1][i] if rows else 0}[line[0]]
            row[i] = (row[i] + before) % 256
        rows.append(row)
    return np.array(rows, np.uint8).reshape(height, width, 3), filters


def pictures():
    ramp = np.arange(0, 240, 5, dtype=np.uint8)
    starts = np.random.default_rng(1).integers(0, 256, (40, 1, 3), dtype=np.uint8)
    flat = np.full((9, 7, 3), 200, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (48, 3), dtype=np.uint8)
    return {
        "noise": np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8),
        "flat": flat,
        "ramp to the right": starts + ramp[None, :, None],
        "ramp down": noise[None] + ramp[:40, None, None],
        "one pixel": flat[:1, :1],
    }


@pytest.mark.parametrize("name", pictures())
def test_png_holds_exactly_the_pixels(name):
    image = pictures()[name]
    decoded, _ = decode_by_hand(encode_png(image))
    np.testing.assert_array_equal(decoded, image)


def test_png_uses_the_filter_that_suits_the_picture():
    assert decode_by_hand(encode_png(pictures()["ramp to the right"]))[1] == {1}
    assert decode_by_hand(encode_png(pictures()["ramp down"]))[1] == {2}


def test_another_reader_sees_the_same_png(tmp_path):
    image = pictures()["noise"]
    (tmp_path / "x.png").write_bytes(encode_png(image))
    with av.open(str(tmp_path / "x.png")) as file:
        np.testing.assert_array_equal(next(file.decode(video=0)).to_ndarray(format="rgb24"), image)


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), np.uint8)])
def test_png_refuses_what_is_no_picture(image):
    with pytest.raises(ValueError, match="uint8"):
        encode_png(image)
