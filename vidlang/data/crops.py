"""Where to cut: one box for a whole clip, drawn before any frame is decoded.

Boxes are even in every number: in 4:2:0 video two by two pixels share one colour sample, so an even box can be cut from
the stored planes before conversion, exactly. Rounding moves a box by at most one pixel.

Sizes in a rule are shares of the frame, so that one rule serves videos of all sizes; the box is then scaled to what the
model sees. Which rule is whose:

    random_resized  most recipes: a box of random area and aspect (EgoVLP, AVION: area 0.5 to 1)
    multi_scale     VideoMAE and AVION's MSC: the short side's length times one of four scales, at one of 13 places
    short_side      "short side to 256, then 224": a random place in training, the centre in testing
    center          the centred square; several views lie along the long side (VideoMAE's three crops)
    full, fixed     the whole frame, or a box of one's own
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def choose_crop(
    rng: np.random.Generator | None,
    height: int,
    width: int,
    *,
    view: int = 0,
    views: int = 1,
    name: str,
    **options: Any,
) -> CropBox:
    """The box that the named rule picks in a frame of this size; only random rules need `rng`.

    Testing may take several `views` of one frame, spread along its long side from end to end, by the rules in VIEWS.
    """
    if min(height, width) < 2:
        raise ValueError(f"cannot crop a frame of height {height} and width {width}: both must be at least 2")
    if name not in CROPS:
        raise ValueError(f"unknown crop {name!r}{did_you_mean(name, CROPS)}; there are: {', '.join(CROPS)}")
    if not 0 <= view < views:
        raise ValueError(f"a view is a number from 0 to views - 1, got view {view} of {views}")
    if views > 1 and (rng is not None or name not in VIEWS):
        found = "a random generator" if rng is not None else f"the crop {name!r}"
        raise ValueError(f"several views are for testing with the crops {', '.join(VIEWS)}; got {views} and {found}")
    extra = {"where": 0.5 if views == 1 else view / (views - 1)} if name in VIEWS else {}
    return call(CROPS[name], options, what=f"crop {name!r}", rng=rng, height=height, width=width, **extra)


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
    rng = _needed(rng, "random_resized")
    mirrored = _mirrored(rng, flip, "random_resized")
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ValueError(
            "the crop 'random_resized' needs 0 < scale <= 1 and ratio > 0 as (low, high), "
            f"got scale {tuple(scale)}, ratio {tuple(ratio)}"
        )
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 2 <= box_height <= height and 2 <= box_width <= width:
            return _place(box_height, box_width, height, width, rng, mirrored)
    # In long frames no drawn box may fit: take the largest one of an allowed aspect, at a random place.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return _place(min(height, width / aspect), min(width, height * aspect), height, width, rng, mirrored)


def _multi_scale(
    rng: np.random.Generator | None,
    height: int,
    width: int,
    scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66),
    distort: int = 1,
    places: str = "fixed",
    flip: float = 0.0,
) -> CropBox:
    """A box whose height and width are the short side times two of the scales, at most `distort` apart in their list.

    It lies at one of 13 "fixed" places, all as likely (the corners, the middles of the borders, the centre, and the
    middles between centre and corners), or at a "random" one.
    """
    rng = _needed(rng, "multi_scale")
    mirrored = _mirrored(rng, flip, "multi_scale")
    if not scales or min(scales) <= 0 or max(scales) > 1 or distort < 0 or places not in ("fixed", "random"):
        raise ValueError(
            "the crop 'multi_scale' needs scales above 0 up to 1, distort >= 0 and places 'fixed' or 'random', "
            f"got scales {tuple(scales)}, distort {distort}, places {places!r}"
        )
    count, side = len(scales), min(height, width)
    pairs = [(i, j) for i in range(count) for j in range(count) if abs(i - j) <= distort]
    i, j = pairs[rng.integers(len(pairs))]
    box_height, box_width = max(2.0, side * scales[i]), max(2.0, side * scales[j])
    if places == "random":
        return _place(box_height, box_width, height, width, rng, mirrored)
    down, along = FIXED_PLACES[rng.integers(len(FIXED_PLACES))]
    return _place_at(box_height, box_width, height, width, (down / 4, along / 4), mirrored)


def _short_side(
    rng: np.random.Generator | None,
    height: int,
    width: int,
    where: float,
    side: int | tuple[int, int] = 256,
    crop: int = 224,
    flip: float = 0.0,
) -> CropBox:
    """The square that "scale the short side to `side`, then cut `crop`" shows: at a random place with a generator, at
    the view's without. A training `side` of (low, high) is drawn anew each time."""
    low, high = (side, side) if isinstance(side, int) else side
    if not 2 <= crop <= low <= high or (rng is None and low < high):
        raise ValueError(
            "the crop 'short_side' needs 2 <= crop <= side, and one number as side in testing, "
            f"got crop {crop}, side {side}"
        )
    if rng is None:
        return _center(None, height, width, where, crop / low)
    mirrored = _mirrored(rng, flip, "short_side")
    square = max(2.0, min(height, width) * crop / rng.uniform(low, high))
    return _place(square, square, height, width, rng, mirrored)


def _center(rng: np.random.Generator | None, height: int, width: int, where: float, share: float = 1.0) -> CropBox:
    """The square whose side is `share` of the short side: in the middle, or for several views along the long side."""
    if not 0 < share <= 1:
        raise ValueError(f"the crop 'center' needs 0 < share <= 1, got {share}")
    side = max(2.0, share * min(height, width))
    place = (where, 0.5) if height > width else (0.5, where)
    return _place_at(side, side, height, width, place, False)


def _full(rng: np.random.Generator | None, height: int, width: int) -> CropBox:
    """The whole frame (less its last row or column where odd); resizing it may change its aspect."""
    return _place_at(height, width, height, width, (0.5, 0.5), False)


def _fixed(
    rng: np.random.Generator | None,
    height: int,
    width: int,
    top: float,
    left: float,
    bottom: float,
    right: float,
) -> CropBox:
    """The box between four shares of the frame: 0 is its top or left border, 1 its bottom or right one."""
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(
            "the crop 'fixed' needs 0 <= top < bottom <= 1 and 0 <= left < right <= 1, "
            f"got top {top}, bottom {bottom}, left {left}, right {right}"
        )
    box_height, box_width = _even((bottom - top) * height), _even((right - left) * width)
    at_top, at_left = 2 * round(top * height / 2), 2 * round(left * width / 2)
    room_top, room_left = 2 * ((height - box_height) // 2), 2 * ((width - box_width) // 2)
    return CropBox(min(at_top, room_top), min(at_left, room_left), box_height, box_width)


def _needed(rng: np.random.Generator | None, name: str) -> np.random.Generator:
    if rng is None:
        raise ValueError(f"the crop {name!r} needs a random generator; choose 'center' or 'full' for evaluation")
    return rng


def _mirrored(rng: np.random.Generator, flip: float, name: str) -> bool:
    if not 0 <= flip <= 1:
        raise ValueError(f"the crop {name!r} needs 0 <= flip <= 1, got {flip}")
    return bool(rng.random() < flip)


def _place(
    box_height: float, box_width: float, height: int, width: int, rng: np.random.Generator, flip: bool
) -> CropBox:
    """The box rounded to even numbers, at a uniformly drawn even place."""
    box_height, box_width = _even(box_height), _even(box_width)
    top, left = int(rng.integers((height - box_height) // 2 + 1)), int(rng.integers((width - box_width) // 2 + 1))
    return CropBox(2 * top, 2 * left, box_height, box_width, flip)


def _place_at(
    box_height: float, box_width: float, height: int, width: int, place: tuple[float, float], flip: bool
) -> CropBox:
    """The box rounded to even numbers, where `place` (down, along) has 0 as one border and 1 as the other."""
    box_height, box_width = _even(box_height), _even(box_width)
    top, left = (height - box_height) // 2 * place[0], (width - box_width) // 2 * place[1]
    # To the nearest even place; half way between two, the one nearer to the border at 0.
    return CropBox(2 * math.ceil(top - 0.5), 2 * math.ceil(left - 0.5), box_height, box_width, flip)


def _even(size: float) -> int:
    # Products of a share and a size may fall an ulp short of the whole number they mean.
    return max(2, 2 * (int(size + 1e-6) // 2))


CROPS: dict[str, Callable[..., CropBox]] = {
    "random_resized": _random_resized,
    "multi_scale": _multi_scale,
    "short_side": _short_side,
    "center": _center,
    "full": _full,
    "fixed": _fixed,
}

# Rules that know where several views of a frame lie.
VIEWS = ("center", "short_side")

# Quarters of the room that a box leaves, (down, along): corners, middles of the borders, centre, between them.
FIXED_PLACES = (
    *((0, 0), (0, 4), (4, 0), (4, 4)),
    *((0, 2), (2, 0), (2, 4), (4, 2)),
    (2, 2),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)
