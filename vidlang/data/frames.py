"""When to look: the times of a clip's frames, in seconds, drawn before any frame is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vidlang.core.config import call, did_you_mean


def choose_times(
    rng: np.random.Generator | None, start: float, end: float, count: int, *, name: str, **options: Any
) -> np.ndarray:
    """`count` increasing times in [start, end) as the named rule picks them, float64.

    Random rules draw from `rng`; `middle` and `fps` also work without one.
    """
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise ValueError(f"a clip needs 0 <= start < end in seconds, got start {start} and end {end}")
    if count < 1:
        raise ValueError(f"a clip needs at least one frame, got {count}")
    if name not in TIMES:
        raise ValueError(f"unknown times {name!r}{did_you_mean(name, TIMES)}; there are: {', '.join(TIMES)}")
    times_T = call(TIMES[name], options, what=f"times {name!r}", rng=rng, start=start, end=end, count=count)
    # Rounding may reach `end` itself, which belongs to the next clip.
    return np.clip(times_T, start, np.nextafter(end, start))


def _segments(rng: np.random.Generator | None, start: float, end: float, count: int) -> np.ndarray:
    """One uniform draw in each of `count` equal parts: random, yet the clip is covered."""
    if rng is None:
        raise ValueError("the times 'segments' need a random generator; choose 'middle' for evaluation")
    return start + (np.arange(count) + rng.random(count)) * ((end - start) / count)


def _middle(rng: np.random.Generator | None, start: float, end: float, count: int) -> np.ndarray:
    """The middle of each of `count` equal parts."""
    return start + (np.arange(count) + 0.5) * ((end - start) / count)


def _fps(rng: np.random.Generator | None, start: float, end: float, count: int, rate: float = 1.0) -> np.ndarray:
    """`rate` frames a second.

    A clip longer than count / rate seconds is seen through a window of that length: at a random place with `rng`, at
    its start without. In a shorter clip the frames past its end stay at its last moment.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the times 'fps' need a rate above 0 frames a second, got {rate}")
    room = max(0.0, (end - start) - count / rate)
    offset = 0.0 if rng is None else rng.uniform(0.0, room)
    return start + offset + (np.arange(count) + 0.5) / rate


TIMES: dict[str, Callable[..., np.ndarray]] = {"segments": _segments, "middle": _middle, "fps": _fps}
