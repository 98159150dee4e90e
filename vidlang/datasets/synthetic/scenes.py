"""Draws what happens in every video before a pixel exists, and keeps some combinations of events for validation.

The numpy Generator of a video knows only (seed, part of the corpus, index): a video does not depend on how many others
exist or on which process draws it.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vidlang.datasets.synthetic.grammar import PATTERNS, Background, Event, Key, Scene, Video
from vidlang.datasets.synthetic.settings import Settings

PARTS = ("train", "val", "train_long", "val_long")
HELD_OUT = 4  # one pair of events in so many is kept for validation


def generator(seed: int, part: str, index: int) -> np.random.Generator:
    """The random numbers of one video (or twin pair) of one part of the corpus."""
    return np.random.default_rng(np.random.SeedSequence([seed, PARTS.index(part), index]))


def held_out(seed: int, first: Key, second: Key) -> bool:
    """Whether this pair of events, in either order, is kept for validation."""
    low, high = sorted((first, second))
    mixed = seed + 1
    for value in (*low, *high):  # multiply-xorshift over 64 bits, the same on every machine
        mixed = ((mixed ^ value) * 0x9E3779B97F4A7C15) % 2**64
        mixed ^= mixed >> 29
    return mixed % HELD_OUT == 0


def compatible(first: Key, second: Key) -> bool:
    """Whether two events differ in colour, shape and verb, so that each of the three tells their order."""
    return all(a != b for a, b in zip(first, second, strict=True))


def draw_videos(settings: Settings) -> list[Video]:
    """Every video of the corpus, train first; validation pairs events of training in combinations it never shows."""
    videos = list(_train(settings))
    for index in range(settings.long_videos):
        videos.append(_long(settings, "train", index, None))
    seen = sorted({event.key for video in videos if not video.long for _, event in video.events()})
    videos += _validation(settings, seen)
    for index in range(settings.long_videos):
        videos.append(_long(settings, "val", index, seen))
    return videos


def _train(settings: Settings) -> Iterator[Video]:
    for index in range(settings.train_videos // 2):
        rng = generator(settings.seed, "train", index)
        scenes = []
        for position in range(settings.scenes_per_video):
            keys = _draw_pair(rng, settings)
            scenes.append(_scene(rng, settings, keys, pair=index * settings.scenes_per_video + position))
        swapped = rng.integers(2, size=len(scenes))
        here = [scene.twin() if swap else scene for scene, swap in zip(scenes, swapped, strict=True)]
        there = [scene.twin() for scene in here]
        there = [there[position] for position in rng.permutation(len(there))]
        for offset, chosen in enumerate((here, there)):
            yield Video(f"train_{2 * index + offset:05d}", "train", False, _line_up(chosen))


def _validation(settings: Settings, seen: list[Key]) -> Iterator[Video]:
    pairs = [
        (first, second)
        for position, first in enumerate(seen)
        for second in seen[position + 1 :]
        if compatible(first, second) and held_out(settings.seed, first, second)
    ]
    wanted = settings.val_videos // 2
    if len(pairs) < wanted:
        raise ValueError(
            f"synthetic corpus: val_videos={settings.val_videos} needs {wanted} pairs of events that training shows "
            f"apart but never together, and there are {len(pairs)}; raise train_videos or lower val_videos"
        )
    chosen = np.random.default_rng([settings.seed, len(PARTS)]).permutation(len(pairs))[:wanted]
    for index, choice in enumerate(chosen):
        rng = generator(settings.seed, "val", index)
        scene = _scene(rng, settings, pairs[choice], pair=index)
        first = scene.twin() if rng.integers(2) else scene
        for offset, shown in enumerate((first, first.twin())):
            yield Video(f"val_{2 * index + offset:05d}", "val", False, (shown,))


def _long(settings: Settings, split: str, index: int, seen: list[Key] | None) -> Video:
    """Places of about 45 s; events last several runs of their action, with empty moments between them."""
    rng = generator(settings.seed, f"{split}_long", index)
    total = int(round(settings.long_seconds * settings.fps))
    places = max(2, int(round(settings.long_seconds / 45)))
    bounds = [total * place // places for place in range(places + 1)]
    scenes: list[Scene] = []
    last: Key | None = None
    cycle = settings.event_frames
    for start, end in zip(bounds, bounds[1:], strict=False):
        events: list[Event] = []
        clock = int(rng.integers(cycle))
        while clock + cycle <= end - start:
            runs = min(int(rng.integers(3, 8)), (end - start - clock) // cycle)
            last = _draw_next(rng, settings, last, seen)
            events.append(_event(rng, last, clock, runs * cycle, cycle))
            clock += runs * cycle + int(rng.integers(cycle // 2, 2 * cycle))
        scenes.append(Scene(_background(rng), tuple(events), 0, end - start, pair=-1))
    return Video(f"{split}_long_{index:03d}", split, True, _line_up(scenes))


def _line_up(scenes: list[Scene]) -> tuple[Scene, ...]:
    starts = np.cumsum([0, *(scene.frames for scene in scenes)])
    return tuple(dataclasses.replace(scene, start=int(at)) for scene, at in zip(scenes, starts, strict=False))


def _draw_key(rng: np.random.Generator, settings: Settings) -> Key:
    return int(rng.integers(settings.colours)), int(rng.integers(settings.shapes)), int(rng.integers(settings.verbs))


def _draw_pair(rng: np.random.Generator, settings: Settings) -> tuple[Key, Key]:
    while True:
        first, second = _draw_key(rng, settings), _draw_key(rng, settings)
        if compatible(first, second) and not held_out(settings.seed, first, second):
            return first, second


def _draw_next(
    rng: np.random.Generator,
    settings: Settings,
    last: Key | None,
    seen: list[Key] | None,
) -> Key:
    """Next event of a long video; in training never a held-out partner of the last, in validation one that was seen."""
    while True:
        key = _draw_key(rng, settings) if seen is None else seen[int(rng.integers(len(seen)))]
        if last is None or (key != last and (seen is not None or not held_out(settings.seed, last, key))):
            return key


def _scene(
    rng: np.random.Generator,
    settings: Settings,
    keys: tuple[Key, Key],
    pair: int,
) -> Scene:
    frames = settings.event_frames
    events = tuple(_event(rng, key, place * frames, frames, frames) for place, key in enumerate(keys))
    return Scene(_background(rng), events, 0, 2 * frames, pair)


def _event(rng: np.random.Generator, key: Key, start: int, frames: int, cycle: int) -> Event:
    x, y, radius = int(rng.integers(400, 601)), int(rng.integers(400, 601)), int(rng.integers(160, 191))
    return Event(*key, start, frames, cycle, x, y, radius, int(rng.integers(-40, 41)), int(rng.integers(2)))


def _background(rng: np.random.Generator) -> Background:
    level = int(rng.integers(70, 131))
    tints, steps = rng.integers(-8, 9, size=3).tolist(), rng.integers(21, 32, size=3).tolist()
    red, green, blue = (level + tint for tint in tints)
    return Background(
        pattern=int(rng.integers(len(PATTERNS))),
        first=(red, green, blue),
        second=(red + steps[0], green + steps[1], blue + steps[2]),
        period=int(rng.integers(110, 260)),
        angle=int(rng.integers(1024)),
        speed_x=int(rng.integers(-150, 151)),
        speed_y=int(rng.integers(-150, 151)),
    )
