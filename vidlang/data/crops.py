"""Where to cut: one box for a whole clip, drawn before any frame is decoded.

Boxes are even in every number: in 4:2:0 video two by two pixels share one colour sample, so an even box can be cut from
the stored planes before conversion, exactly. Rounding moves a box by at most one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidlang.core.config import call, did_you_mean


@dataclass(frozen=True)
class CropBox:
    """A rectangle of the upright frame in pixels, and whether the result is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def __post_init__(self) -> None:
        numbers = (self.top, self.left, self.height, self.width)
        if any(number % 2 for number in numbers) or min(self.top, self.left) < 0 or min(self.height, self.width) < 2:
            raise ValueError(f"a crop box needs even numbers, offsets >= 0 and sizes >= 2, got {self}")

    def check_inside(self, height: int, width: int) -> None:
        """Raises when a part of the box lies outside a frame of this size."""
        if self.top + self.height > height or self.left + self.width > width:
            raise ValueError(f"{self} does not lie inside a frame of height {height} and width {width}")


def choose_crop(rng: np.random.Generator | None, height: int, width: int, *, name: str, **options: Any) -> CropBox:
    """The box that the named rule picks in a frame of this size; only random rules need `rng`."""
    if min(height, width) < 2:
        raise ValueError(f"cannot crop a frame of height {height} and width {width}: both must be at least 2")
    if name not in CROPS:
        raise ValueError(f"unknown crop {name!r}{did_you_mean(name, CROPS)}; there are: {', '.join(CROPS)}")
    return call(CROPS[name], options, what=f"crop {name!r}", rng=rng, height=height, width=width)


def _random_resized(
    rng: np.random.Generator | None,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
) -> CropBox:
    """A box of random area (share of the frame), aspect (width / height, log-uniform) and place; mirrored with
    probability `flip`."""
    if rng is None:
        raise ValueError("the crop 'random_resized' needs a random generator; choose 'center' or 'full' for evaluation")
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1] and 0 <= flip <= 1):
        raise ValueError(
            "the crop 'random_resized' needs 0 < scale <= 1 and ratio > 0 as (low, high) and 0 <= flip <= 1, "
            f"got {scale=}, {ratio=}, {flip=}"
        )
    mirrored = bool(rng.random() < flip)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 2 <= box_height <= height and 2 <= box_width <= width:
            return _place(box_height, box_width, height, width, rng, mirrored)
    # In long frames no drawn box may fit: take the largest one of an allowed aspect, at a random place.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return _place(min(height, width / aspect), min(width, height * aspect), height, width, rng, mirrored)


def _center(rng: np.random.Generator | None, height: int, width: int, share: float = 1.0) -> CropBox:
    """The centred square whose side is `share` of the short side."""
    if not 0 < share <= 1:
        raise ValueError(f"the crop 'center' needs 0 < share <= 1, got {share}")
    side = max(2.0, share * min(height, width))
    return _place(side, side, height, width, None, False)


def _full(rng: np.random.Generator | None, height: int, width: int) -> CropBox:
    """The whole frame (less its last row or column where odd); resizing it may change its aspect."""
    return _place(height, width, height, width, None, False)


def _place(
    box_height: float, box_width: float, height: int, width: int, rng: np.random.Generator | None, flip: bool
) -> CropBox:
    """The box rounded to even numbers, at a uniformly drawn even place, or in the middle without `rng`."""
    box_height, box_width = 2 * (int(box_height) // 2), 2 * (int(box_width) // 2)
    room_top, room_left = (height - box_height) // 2, (width - box_width) // 2
    if rng is None:
        top, left = room_top // 2, room_left // 2
    else:
        top, left = int(rng.integers(room_top + 1)), int(rng.integers(room_left + 1))
    return CropBox(2 * top, 2 * left, box_height, box_width, flip)


CROPS: dict[str, Callable[..., CropBox]] = {
    "random_resized": _random_resized,
    "center": _center,
    "full": _full,
}
