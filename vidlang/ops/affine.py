"""Clips turned, slanted and moved: every pixel is looked up where an affine map says, between pixels by cubics.

The six numbers of a map (a, b, c, d, e, f) say where a pixel of the result comes from, as in the Pillow library: from
(a x + b y + c, d x + e y + f), with x to the right and y down, and pixel centres at halves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# What is seen where the map leaves the frame.
FILL = 128
# Before sums are cut down to whole numbers: whole sums stay what they are, whichever way their last bits were rounded.
_CRUMB = 1 / 512


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Counter-clockwise around the centre."""
    angle = -jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack([cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y])


def shear(across: jax.Array, down: jax.Array) -> jax.Array:
    """Rows moved by `across` of their height from the top, columns by `down` of their place from the left."""
    one, none = jnp.ones_like(across), jnp.zeros_like(across)
    return jnp.stack([one, across, none, down, one, none])


def shift(across: jax.Array, down: jax.Array) -> jax.Array:
    """All moved left by `across` pixels and up by `down`."""
    one, none = jnp.ones_like(across), jnp.zeros_like(across)
    return jnp.stack([one, none, across, none, one, down])


def warp(x_THWC: jax.Array, matrix: jax.Array) -> jax.Array:
    """The clip, uint8, seen through one map [6] for all frames."""
    frames, height, width, channels = x_THWC.shape
    a, b, c, d, e, f = matrix
    y_HW = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    x_HW = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5
    from_x_P, from_y_P = (a * x_HW + b * y_HW + c).reshape(-1), (d * x_HW + e * y_HW + f).reshape(-1)
    inside_P = (from_x_P >= 0) & (from_x_P < width) & (from_y_P >= 0) & (from_y_P < height)
    left_P, top_P = jnp.floor(from_x_P - 0.5), jnp.floor(from_y_P - 0.5)
    # One row for each pixel, so that all its frames and channels are fetched together.
    pixels_PF = x_THWC.transpose(1, 2, 0, 3).reshape(height * width, frames * channels)
    total_PF = jnp.zeros(pixels_PF.shape, jnp.float32)
    columns = [
        (jnp.clip(left_P.astype(jnp.int32) + place, 0, width - 1), weight_P)
        for place, weight_P in enumerate(_cubic(from_x_P - 0.5 - left_P), start=-1)
    ]
    for place, down_P in enumerate(_cubic(from_y_P - 0.5 - top_P), start=-1):
        row_P = jnp.clip(top_P.astype(jnp.int32) + place, 0, height - 1)
        for column_P, across_P in columns:
            found_PF = pixels_PF[row_P * width + column_P].astype(jnp.float32)
            total_PF = total_PF + (down_P * across_P)[:, None] * found_PF
    levels_PF = jnp.clip(total_PF + _CRUMB, 0, 255).astype(jnp.uint8)
    seen_PF = jnp.where(inside_P[:, None], levels_PF, jnp.uint8(FILL))
    return seen_PF.reshape(height, width, frames, channels).transpose(2, 0, 1, 3)


def _cubic(way: jax.Array) -> tuple[jax.Array, ...]:
    """Weights of the two pixels before and the two behind a place that is `way` from the second to the third."""
    square, cube = way**2, way**3
    return -way + 2 * square - cube, 1 - 2 * square + cube, way + square - cube, cube - square
