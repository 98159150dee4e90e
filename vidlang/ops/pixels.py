"""Pixels as a network wants them, computed on the device: the host sends a quarter of the bytes that floats take."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Weights of red and blue in the luma of BT.709.
BT709 = (0.2126, 0.0722)


def normalize(video_BTHWC: jax.Array, *, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """(value / 255 - mean) / std of pixels in 0..255, computed in float32 and returned in `dtype`.

    Pixels are uint8 as they were decoded, or floats as augmentation leaves them, in the same range. `mean` and `std`
    are per channel, or one number for all of them.
    """
    if video_BTHWC.dtype != jnp.uint8 and not jnp.issubdtype(video_BTHWC.dtype, jnp.floating):
        raise ValueError(
            f"video pixels are {video_BTHWC.dtype}; expected uint8, or floats, in 0..255, which are normalised on the "
            "device"
        )
    channels = video_BTHWC.shape[-1]
    scale, shift = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} values for {channels} channels; give one number or {channels}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive; found {tuple(std)}")
    # One multiply and one add per pixel instead of three operations.
    scale[:] = 1.0 / (255.0 * np.asarray(std, np.float32))
    shift[:] = -np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    leading = (1,) * (video_BTHWC.ndim - 1)
    pixels = video_BTHWC.astype(jnp.float32) * scale.reshape(*leading, -1) + shift.reshape(*leading, -1)
    return pixels.astype(dtype)


def yuv420_to_rgb(yuv_BTXW: jax.Array) -> jax.Array:
    """uint8 [B, T, H, W, 3] of planar YUV 4:2:0, BT.709 in limited range: half the bytes until they are here.

    X is 3 H / 2 rows of W: H rows of luma, H / 4 rows that hold the H/2 x W/2 samples of U, and as many of V. A chroma
    sample lies in the middle of its four pixels, and pixels in between take from the nearest two by distance.
    """
    batch, frames, rows, width = yuv_BTXW.shape
    height = rows * 2 // 3
    if yuv_BTXW.dtype != jnp.uint8 or rows * 2 != height * 3 or height % 4 or width % 2:
        raise ValueError(
            f"YUV 4:2:0 clips are uint8 [B, T, 3 H / 2, W], H a multiple of 4 and W of 2; found {yuv_BTXW.dtype} "
            f"{yuv_BTXW.shape}"
        )
    luma = (yuv_BTXW[:, :, :height].astype(jnp.float32) - 16.0) * (255.0 / 219.0)
    planes = yuv_BTXW[:, :, height:].reshape(batch, frames, 2, height // 2, width // 2).astype(jnp.float32)
    chroma = _doubled(_doubled((planes - 128.0) * (255.0 / 224.0), axis=3), axis=4)
    blue, red = chroma[:, :, 0], chroma[:, :, 1]
    red_weight, blue_weight = BT709
    green_weight = 1.0 - red_weight - blue_weight
    # From Y = r R + g G + b B, U = (B - Y) / (2 - 2 b) and V = (R - Y) / (2 - 2 r).
    from_red, from_blue = 2.0 - 2.0 * red_weight, 2.0 - 2.0 * blue_weight
    channels = (
        luma + from_red * red,
        luma - (red_weight * from_red * red + blue_weight * from_blue * blue) / green_weight,
        luma + from_blue * blue,
    )
    return jnp.clip(jnp.round(jnp.stack(channels, axis=-1)), 0.0, 255.0).astype(jnp.uint8)


def _doubled(x: jax.Array, axis: int) -> jax.Array:
    """Twice as many samples along an axis, each a quarter of the way from its own old one to the next; edges repeat."""
    size = x.shape[axis]
    before = jnp.concatenate([_span(x, axis, 0, 1), _span(x, axis, 0, size - 1)], axis=axis)
    after = jnp.concatenate([_span(x, axis, 1, size), _span(x, axis, size - 1, size)], axis=axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _span(x: jax.Array, axis: int, start: int, stop: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)
