"""Random erasing: a box of a clip becomes noise, the same box in all frames, noise of its own in each.

The box is drawn until it fits, ten times at most, with an area and an aspect from ranges; noise is normal around the
mean of pixels, so that it is standard normal noise after normalisation but for what lies beyond 0 or 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.sharding import per_batch_shard
from vidlang.ops.colours import check_share

_TRIES = 10


@dataclass(frozen=True)
class Erase:
    """With `probability`, a box of `area` of the frame and of `aspect`, height over width and log-uniform.

    mean and std are those of the noise, by channel and as shares of 255; the usual ones are ImageNet's.
    """

    probability: float = 0.25
    area: Sequence[float] = (0.02, 1 / 3)
    aspect: Sequence[float] = (0.3, 1 / 0.3)
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        check_share("erase.probability", self.probability)
        for name in ("area", "aspect", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"augment.erase.area is a range of shares of a frame, as (0.02, 0.33); found {self.area}")
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"augment.erase.aspect is a range above 0, as (0.3, 3.3); found {self.aspect}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3 or min(getattr(self, name)) < 0:
                raise ValueError(f"augment.erase.{name} is three shares of 255, from 0 on; found {getattr(self, name)}")


def erase(x_BTHWC: jax.Array, key_B: jax.Array, how: Erase) -> jax.Array:
    """The clips, some with a box of noise; whole numbers stay whole numbers."""

    def of_device(x_BTHWC: jax.Array, key_B: jax.Array, *, gather: Any) -> jax.Array:
        # One by one: noise is made for those that are erased, and for one at a time.
        return jax.lax.map(lambda row: _of_clip(row[0], row[1], how), (x_BTHWC, key_B))

    changed: jax.Array = per_batch_shard(of_device, x_BTHWC, key_B)
    return changed


def _of_clip(x_THWC: jax.Array, key: jax.Array, how: Erase) -> jax.Array:
    _, height, width, _ = x_THWC.shape
    chance, place, noise = jax.random.split(key, 3)
    inside_HW, fits = _box(place, height, width, how)

    def noisy(x_THWC: jax.Array) -> jax.Array:
        mean, std = (255 * jnp.array(values, jnp.float32)[None, None, None] for values in (how.mean, how.std))
        levels = jnp.clip(mean + std * jax.random.normal(noise, x_THWC.shape), 0, 255)
        levels = jnp.round(levels) if x_THWC.dtype == jnp.uint8 else levels
        return jnp.where(inside_HW[None, :, :, None], levels.astype(x_THWC.dtype), x_THWC)

    chosen = fits & (jax.random.uniform(chance) < how.probability)
    changed: jax.Array = jax.lax.cond(chosen, noisy, lambda x_THWC: x_THWC, x_THWC)
    return changed


def _box(key: jax.Array, height: int, width: int, how: Erase) -> tuple[jax.Array, jax.Array]:
    """(which pixels are in the first box that fits, whether one did)."""
    shares, aspects, down, across = jax.random.split(key, 4)
    area_N = height * width * jax.random.uniform(shares, (_TRIES,), minval=how.area[0], maxval=how.area[1])
    low, high = jnp.log(how.aspect[0]), jnp.log(how.aspect[1])
    aspect_N = jnp.exp(jax.random.uniform(aspects, (_TRIES,), minval=low, maxval=high))
    rows_N, columns_N = jnp.round(jnp.sqrt(area_N * aspect_N)), jnp.round(jnp.sqrt(area_N / aspect_N))
    fits_N = (rows_N < height) & (columns_N < width)
    first = jnp.argmax(fits_N)
    rows, columns = rows_N[first], columns_N[first]
    top = jnp.floor(jax.random.uniform(down) * (height - rows + 1))
    left = jnp.floor(jax.random.uniform(across) * (width - columns + 1))
    y_H, x_W = jnp.arange(height), jnp.arange(width)
    inside_H, inside_W = (y_H >= top) & (y_H < top + rows), (x_W >= left) & (x_W < left + columns)
    return inside_H[:, None] & inside_W[None, :], fits_N.any()
