"""Pixels are converted and normalised as arithmetic in float64 says."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.data.crops import CropBox
from vidlang.data.decode import decode
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.ops.pixels import normalize, yuv420_to_rgb

ALL_VALUES = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, axis=-1)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5,)), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), ((0.0,), (1.0, 2.0, 0.5))]
)
def test_every_value_of_every_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    expected = (ALL_VALUES.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    found = normalize(jnp.asarray(ALL_VALUES), mean=mean, std=std, dtype=jnp.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    floats = normalize(jnp.asarray(ALL_VALUES, jnp.float32), mean=mean, std=std, dtype=jnp.float32)
    np.testing.assert_array_equal(floats, found)
    half = normalize(jnp.asarray(ALL_VALUES), mean=mean, std=std, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)


def test_what_cannot_be_meant_is_refused() -> None:
    video = jnp.asarray(ALL_VALUES)
    with pytest.raises(ValueError, match="int32; expected uint8, or floats, in 0..255"):
        normalize(video.astype(jnp.int32), mean=(0.5,), std=(0.5,), dtype=jnp.float32)
    with pytest.raises(ValueError, match="mean has 2 values for 3 channels"):
        normalize(video, mean=(0.5, 0.5), std=(0.5,), dtype=jnp.float32)
    with pytest.raises(ValueError, match="std must be positive"):
        normalize(video, mean=(0.5,), std=(0.0,), dtype=jnp.float32)


# Y, U, V in 0..255 from R, G, B in 0..1, as ITU-R BT.709 and its "limited" range give them.
LUMA = np.array([0.2126, 0.7152, 0.0722])


def to_yuv(rgb):
    """float64 [..., 3] in limited range, from levels 0..255; nothing is rounded."""
    rgb = rgb / 255.0
    y = rgb @ LUMA
    u, v = (rgb[..., 2] - y) / 1.8556, (rgb[..., 0] - y) / 1.5748
    return 16 + 219 * y, 128 + 224 * u, 128 + 224 * v


def pack(y, u, v):
    """Planes [B, T, H, W] and two of [B, T, H/2, W/2] as one [B, T, 3H/2, W]."""
    *lead, height, width = y.shape
    rows = [plane.reshape(*lead, height // 4, width) for plane in (u, v)]
    return np.concatenate([y, *rows], axis=2).round().clip(0, 255).astype(np.uint8)


@pytest.mark.slow
def test_every_plain_colour_comes_back() -> None:
    rng = np.random.default_rng(0)
    rgb = np.concatenate([rng.integers(0, 256, (60, 3)), [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]])
    planes = [np.broadcast_to(plane[:, None, None, None], (64, 1, 4, 4)) for plane in to_yuv(rgb)]
    packed = pack(planes[0], planes[1][..., :2, :2], planes[2][..., :2, :2])
    found = np.asarray(yuv420_to_rgb(jnp.asarray(packed)))
    assert found.shape == (64, 1, 4, 4, 3) and found.dtype == np.uint8
    # What rounding Y, U and V to whole levels can do: half a level of each, by the largest weights.
    np.testing.assert_allclose(found.astype(float), np.broadcast_to(rgb[:, None, None, None], found.shape), atol=2.5)


@pytest.mark.slow
def test_chroma_lies_in_the_middle_of_its_pixels() -> None:
    rng = np.random.default_rng(1)
    y, u, v = (rng.integers(90, 160, size).astype(float) for size in ((2, 3, 8, 12), (2, 3, 4, 6), (2, 3, 4, 6)))

    def at(plane, size):
        """Linear between the centres 0.5, 2.5, ... of chroma samples, and constant beyond the outermost."""
        for axis, count in ((2, size[0]), (3, size[1])):
            centres = 2 * np.arange(plane.shape[axis]) + 0.5
            plane = np.apply_along_axis(lambda line: np.interp(np.arange(count), centres, line), axis, plane)  # noqa: B023
        return (plane - 128) / 224

    luma, blue, red = (y - 16) / 219, at(u, (8, 12)), at(v, (8, 12))
    r, b = luma + 1.5748 * red, luma + 1.8556 * blue
    want = 255 * np.stack([r, (luma - LUMA[0] * r - LUMA[2] * b) / LUMA[1], b], axis=-1)
    found = np.asarray(yuv420_to_rgb(jnp.asarray(pack(y, u, v)))).astype(float)
    np.testing.assert_allclose(found, want.clip(0, 255), atol=0.501)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 1, 9, 4), "uint8"), ((1, 1, 6, 3), "uint8"), ((1, 1, 6, 4), "int32")]
)
def test_what_is_no_420_clip_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="uint8 .* H a multiple of 4 and W of 2; found"):
        yuv420_to_rgb(jnp.zeros(shape, dtype))


@pytest.fixture(scope="module")
def natural_clip():
    """Fine structure in brightness and broad one in colour, as what cameras see has, in the house encoding."""
    y, x = np.mgrid[0:128, 0:192]
    detail = np.sin(x / 2.3 + y / 7) + np.sin(y / 1.9 - x / 5)
    colour = np.stack([np.sin(2 * np.pi * (x * np.cos(a) + y * np.sin(a)) / 90 + a) for a in (0.3, 1.7, 2.9)], axis=-1)
    frames = [(120 + 25 * np.roll(detail, 3 * t, 1)[..., None] + 50 * colour).clip(0, 255) for t in range(3)]
    return encode_mp4([frame.astype(np.uint8) for frame in frames], fps=8, settings=EncodeSettings(preset="ultrafast"))


SAME_SIZE = (CropBox(16, 32, 64, 96, True), (64, 96))
SCALED = [
    (CropBox(0, 0, 128, 192, False), (64, 64)),
    (CropBox(10, 20, 100, 120, True), (224, 224)),
    (CropBox(12, 20, 30, 34, False), (64, 64)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("box", "size"), [SAME_SIZE, *SCALED], ids=str)
def test_what_is_taken_apart_on_the_device_is_what_the_decoder_gives(natural_clip, box, size) -> None:
    rgb, yuv = (decode(natural_clip, np.arange(3), box, size, pixels=pixels) for pixels in ("rgb", "yuv420"))
    found = np.asarray(yuv420_to_rgb(jnp.asarray(yuv)[None])[0])
    difference = np.abs(found.astype(float) - rgb)
    # Scaled, the two differ: colour is scaled before it is made as fine as brightness, or after.
    assert difference.mean() < (0.05 if (box, size) == SAME_SIZE else 1.5)
