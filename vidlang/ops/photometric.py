"""Changes of colour and sharpness on the whole numbers of pixels, frame by frame, as the Pillow library defines them.

All take a clip x_THWC of uint8 in red, green, blue and give one back. Pillow cuts its sums down to whole numbers
where others round; so does this.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Shares of 65536, with which Pillow makes grey.
_GREY = (19_595, 38_470, 7_471)


def auto_contrast(x_THWC: jax.Array) -> jax.Array:
    """Each channel of each frame stretched from its darkest and brightest level to 0 and 255."""
    levels = x_THWC.astype(jnp.int32)
    low, high = (find(levels, axis=(1, 2), keepdims=True) for find in (jnp.min, jnp.max))
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, levels).astype(jnp.uint8)


def equalize(x_THWC: jax.Array) -> jax.Array:
    """Each channel of each frame with its levels moved until all are about as frequent."""
    frames, height, width, channels = x_THWC.shape
    levels_NP = x_THWC.transpose(0, 3, 1, 2).reshape(frames * channels, height * width).astype(jnp.int32)
    rows_N1 = jnp.arange(frames * channels)[:, None]
    count_NL = jnp.zeros((frames * channels, 256), jnp.int32).at[rows_N1, levels_NP].add(1)
    brightest_N1 = jnp.take_along_axis(count_NL, levels_NP.max(axis=1, keepdims=True), axis=1)
    step_N1 = (height * width - brightest_N1) // 255
    below_NL = jnp.cumsum(count_NL, axis=1) - count_NL
    table_NL = jnp.minimum((step_N1 // 2 + below_NL) // jnp.maximum(step_N1, 1), 255)
    # With one level, or few pixels, there is nothing to spread.
    table_NL = jnp.where(step_N1 > 0, table_NL, jnp.arange(256)[None])
    moved_NP = jnp.take_along_axis(table_NL, levels_NP, axis=1).astype(jnp.uint8)
    return moved_NP.reshape(frames, channels, height, width).transpose(0, 2, 3, 1)


def invert(x_THWC: jax.Array) -> jax.Array:
    """The negative."""
    return 255 - x_THWC


def posterize(x_THWC: jax.Array, bits: jax.Array) -> jax.Array:
    """Only the highest `bits` of the eight of each level."""
    lost = 8 - bits.astype(jnp.int32)
    return ((x_THWC.astype(jnp.int32) >> lost) << lost).astype(jnp.uint8)


def solarize(x_THWC: jax.Array, threshold: jax.Array) -> jax.Array:
    """The negative of all levels from the threshold on."""
    return jnp.where(x_THWC.astype(jnp.int32) < threshold.astype(jnp.int32), x_THWC, 255 - x_THWC)


def solarize_add(x_THWC: jax.Array, more: jax.Array) -> jax.Array:
    """Levels below 128 made brighter."""
    levels = x_THWC.astype(jnp.int32)
    return jnp.where(levels < 128, jnp.minimum(levels + more.astype(jnp.int32), 255), levels).astype(jnp.uint8)


def color(x_THWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Saturation: 0 is grey, 1 the clip itself, more is beyond it."""
    return _blend(_grey(x_THWC), x_THWC, factor)


def contrast(x_THWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Difference from the frame's grey on average."""
    _, height, width, _ = x_THWC.shape
    mean = (2 * _grey(x_THWC).sum(axis=(1, 2, 3), keepdims=True) + height * width) // (2 * height * width)
    return _blend(mean, x_THWC, factor)


def brightness(x_THWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Difference from black."""
    return _blend(jnp.zeros_like(x_THWC), x_THWC, factor)


def sharpness(x_THWC: jax.Array, factor: jax.Array) -> jax.Array:
    """Difference from the smoothed frame, where a pixel counts five times and its eight neighbours once.

    The outermost pixels have no eight neighbours, and stay.
    """
    levels = x_THWC.astype(jnp.int32)
    _, height, width, _ = levels.shape
    if min(height, width) < 3:
        return x_THWC
    inner = levels[:, 1:-1, 1:-1]
    total = 4 * inner
    for down in range(3):
        for across in range(3):
            total = total + levels[:, down : down + height - 2, across : across + width - 2]
    smooth = levels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)
    return _blend(smooth, x_THWC, factor)


def _grey(x_THWC: jax.Array) -> jax.Array:
    red, green, blue = (share * x_THWC[..., c : c + 1].astype(jnp.int32) for c, share in enumerate(_GREY))
    return (red + green + blue + 0x8000) >> 16


def _blend(base: jax.Array, x_THWC: jax.Array, factor: jax.Array) -> jax.Array:
    """`base` and `factor` times the way from it to the clip."""
    start = base.astype(jnp.float32)
    return jnp.clip(start + factor * (x_THWC.astype(jnp.float32) - start), 0, 255).astype(jnp.uint8)
