"""When to look: the times of a clip's frames, in seconds, drawn before any frame is decoded.

A rule names moments; the frame shown at a moment is the store's to decide. Which rule is whose:

    segments  EgoVLP, LaViLa, AVION, SViTT in training: one random moment in each of equal parts
    middle    the same in testing: the middle of each part
    whole     both, over the whole video whatever the clip's bounds
    fps       LongViViT: a fixed rate through a window (16, 128 or 256 frames at one a second)
    stride    VideoMAE: every n-th frame of the source
    groups    AdaVid-Agg, HierVL: short runs of frames, one in each of equal parts (16 runs of 4)

With a generator a rule draws as in training. Without one it is the rule of testing, a function of its arguments alone;
only `segments` has none. Testing may look at a clip several times: `view` of `views` slides a window from the start of
the clip to its end (`fps`, `stride`, `groups`), or takes another moment of each part (`middle`, `whole`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidlang.core.config import call, did_you_mean

# The end belongs to what comes next. Stores take a time this close to a frame, in seconds, for that frame's own.
MARGIN = 1e-5


@dataclass(frozen=True)
class Scene:
    """What a rule is asked about: a clip, the video it lies in where that is known, and which view of it."""

    start: float
    end: float
    count: int
    view: int = 0
    views: int = 1
    duration: float | None = None
    source_fps: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end) and 0 <= self.start < self.end):
            raise ValueError(f"a clip needs 0 <= start < end in seconds, got start {self.start} and end {self.end}")
        if self.count < 1:
            raise ValueError(f"a clip needs at least one frame, got {self.count}")
        if not 0 <= self.view < self.views:
            raise ValueError(f"a view is a number from 0 to views - 1, got view {self.view} of {self.views}")
        for name, value in (("duration", self.duration), ("source_fps", self.source_fps)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} of a video is above 0, got {value}")

    def offset(self, room: float) -> float:
        """Where this view's window starts in the room that it leaves: the middle for one view, else end to end."""
        return room / 2 if self.views == 1 else room * self.view / (self.views - 1)

    def share(self) -> float:
        """Which moment of a part this view takes: the middle for one view, else the middles of `views` equal parts."""
        return (self.view + 0.5) / self.views


def choose_times(
    rng: np.random.Generator | None,
    start: float,
    end: float,
    count: int,
    *,
    view: int = 0,
    views: int = 1,
    duration: float | None = None,
    source_fps: float | None = None,
    name: str,
    **options: Any,
) -> np.ndarray:
    """`count` times that never step back, in [start, end) (for `whole` in [0, duration)), float64.

    `rng` None is testing, and only there may a clip have several views. `duration` and `source_fps` are the video's:
    the rule `whole` needs the first, `stride` the second unless its option `fps` says another.
    """
    scene = Scene(start, end, count, view, views, duration, source_fps)
    if name not in TIMES:
        raise ValueError(f"unknown times {name!r}{did_you_mean(name, TIMES)}; there are: {', '.join(TIMES)}")
    if rng is not None and views > 1:
        raise ValueError(f"views are for testing; with a random generator there is one, got {views}")
    times_T = call(TIMES[name], options, what=f"times {name!r}", rng=rng, scene=scene)
    low, high = (0.0, duration) if name == "whole" and duration is not None else (start, end)
    return np.clip(times_T, low, max(low, high - MARGIN))


def _segments(rng: np.random.Generator | None, scene: Scene, jitter: float = 1.0) -> np.ndarray:
    """One uniform draw in the middle `jitter` share of each of `count` equal parts: random, yet the clip is covered.

    AVION draws around the middles too, over all but 1 / count of a frame of each part; EgoVLP and LaViLa draw whole
    frames of each part. Both are jitter 1 up to a frame.
    """
    if rng is None:
        raise ValueError("the times 'segments' need a random generator; choose 'middle' for evaluation")
    return _parts(scene.start, scene.end, scene.count, _jittered(rng, scene.count, jitter, "segments"))


def _middle(rng: np.random.Generator | None, scene: Scene) -> np.ndarray:
    """The middle of each of `count` equal parts; views take other moments of the same parts."""
    return _parts(scene.start, scene.end, scene.count, scene.share())


def _whole(rng: np.random.Generator | None, scene: Scene, jitter: float = 1.0) -> np.ndarray:
    """`segments` with a generator and `middle` without, over the whole video."""
    if scene.duration is None:
        raise ValueError("the times 'whole' need the video's duration, which was not given")
    within = scene.share() if rng is None else _jittered(rng, scene.count, jitter, "whole")
    return _parts(0.0, scene.duration, scene.count, within)


def _fps(
    rng: np.random.Generator | None, scene: Scene, rate: float = 1.0, anchor: str = "random", past: str = "hold"
) -> np.ndarray:
    """`rate` frames a second.

    A clip longer than count / rate seconds is seen through a window of that length. anchor: a "random" place (in
    testing the start), always the "start", or always the "center"; several views go from end to end whatever it says.
    past: the frames of a shorter clip that lie past its end "hold" its last moment, or the frames "spread" over it.
    """
    _check_rate(rate, "fps", "rate")
    _check_choice(anchor, ("random", "start", "center"), "fps", "anchor")
    _check_choice(past, ("hold", "spread"), "fps", "past")
    length, window = scene.end - scene.start, scene.count / rate
    if past == "spread" and window > length:
        return _parts(scene.start, scene.end, scene.count, scene.share())
    room = max(0.0, length - window)
    if scene.views > 1 or anchor == "center":
        offset = scene.offset(room)
    else:
        offset = 0.0 if rng is None or anchor == "start" else rng.uniform(0.0, room)
    return scene.start + offset + (np.arange(scene.count) + 0.5) / rate


def _stride(rng: np.random.Generator | None, scene: Scene, step: int = 4, fps: float | None = None) -> np.ndarray:
    """Every `step`-th frame of a source that has `fps` frames a second: by default the store's own.

    The window of count * step frames lies at a random place in training (VideoMAE's pre-training) and in the middle
    in testing; the starts of several views are multiples of `step`, as in VideoMAE's test. Past the end of a clip
    that is shorter than the window its last frame is held.
    """
    if step < 1:
        raise ValueError(f"the times 'stride' need a step of at least 1 frame, got {step}")
    fps = scene.source_fps if fps is None else fps
    if fps is None:
        raise ValueError("the times 'stride' need the source's frames a second; give the option fps")
    _check_rate(fps, "stride", "fps")
    # A frame is shown from k / fps on; a bound that is a frame's own time may be an ulp off.
    first, last = math.floor(scene.start * fps + 1e-6), math.ceil(scene.end * fps - 1e-6) - 1
    frames = max(1, last - first + 1)
    if rng is not None:
        offset = int(rng.integers(max(0, frames - scene.count * step) + 1))
    elif scene.views == 1:
        offset = max(0, frames - scene.count * step) // 2
    else:
        offset = step * int(scene.offset(max(0, math.ceil(frames / step) - scene.count)))
    shown_T = np.minimum(offset + step * np.arange(scene.count), frames - 1)
    return (first + shown_T + 0.5) / fps


def _groups(rng: np.random.Generator | None, scene: Scene, groups: int, rate: float | None = None) -> np.ndarray:
    """`groups` runs of count / groups frames, one run in each of `groups` equal parts of the clip.

    A run has `rate` frames a second and lies at a random place of its part, in testing in the middle. Without a rate
    its frames are spread over the part: consecutive ones of `count` frames that are spread over the clip.
    """
    if groups < 1 or scene.count % groups:
        raise ValueError(
            f"the times 'groups' need a number of groups that divides the frames, got {groups} for {scene.count} frames"
        )
    if rate is None:
        within = scene.share() if rng is None else rng.random(scene.count)
        return _parts(scene.start, scene.end, scene.count, within)
    _check_rate(rate, "groups", "rate")
    length, run = (scene.end - scene.start) / groups, scene.count // groups
    room = max(0.0, length - run / rate)
    offset_G = np.full(groups, scene.offset(room)) if rng is None else rng.uniform(0.0, room, groups)
    moments_GT = np.minimum(offset_G[:, None] + (np.arange(run) + 0.5) / rate, max(0.0, length - MARGIN))
    return (scene.start + length * np.arange(groups)[:, None] + moments_GT).reshape(-1)


def _parts(start: float, end: float, count: int, within: float | np.ndarray) -> np.ndarray:
    """A moment in each of `count` equal parts, at the given shares of the parts."""
    return start + (np.arange(count) + within) * ((end - start) / count)


def _jittered(rng: np.random.Generator, count: int, jitter: float, name: str) -> np.ndarray:
    if not 0 <= jitter <= 1:
        raise ValueError(f"the times {name!r} need 0 <= jitter <= 1, got {jitter}")
    return 0.5 + (rng.random(count) - 0.5) * jitter if jitter < 1 else rng.random(count)


def _check_rate(rate: float, name: str, option: str) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the times {name!r} need a {option} above 0 frames a second, got {rate}")


def _check_choice(value: str, choices: tuple[str, ...], name: str, option: str) -> None:
    if value not in choices:
        raise ValueError(f"the {option} of the times {name!r} is one of {', '.join(choices)}, got {value!r}")


TIMES: dict[str, Callable[..., np.ndarray]] = {
    "segments": _segments,
    "middle": _middle,
    "whole": _whole,
    "fps": _fps,
    "stride": _stride,
    "groups": _groups,
}
