"""Pixels as a network wants them, computed on the device: the host sends a quarter of the bytes that floats take."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(video_BTHWC: jax.Array, *, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """(value / 255 - mean) / std of uint8 pixels, computed in float32 and returned in `dtype`.

    `mean` and `std` are per channel, or one number for all of them.
    """
    if video_BTHWC.dtype != jnp.uint8:
        raise ValueError(
            f"video pixels are {video_BTHWC.dtype}; expected uint8 in 0..255, which are normalised on the device"
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
