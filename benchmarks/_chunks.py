"""The chunks that benchmarks/decode.py reads: real or drawn footage, encoded in several ways."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks._common import footage
from benchmarks._quality import compare, luma, plane
from vidlang.data.container import iterate_frames
from vidlang.data.encode import EncodeSettings, encode_x264
from vidlang.data.failures import BrokenVideo

SECONDS, FPS = 15, 30
LEAST_SECONDS = 4
EVERY = 7  # of the frames, one is compared; no multiple of a GOP, so that all kinds of frames are


@dataclass(frozen=True)
class Coded:
    """One clip in one encoding."""

    mp4: bytes
    ssim: float
    psnr: float
    seconds: float  # that encoding took


def sources(folder: str, count: int, short_side: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Up to `count` clips of 15 s at 30 frames a second: of the videos in a folder, or drawn without one.

    Videos shorter than 4 s or smaller than asked are passed over; others shorter than 15 s run back and forth.
    """
    if not folder:
        width = short_side * 16 // 9 // 2 * 2
        for seed in range(count):
            yield f"drawn {seed}", list(footage(seed, SECONDS * FPS, short_side, width))
        return
    found = 0
    for path in sorted(Path(folder).iterdir()):
        if found == count:
            return
        try:
            frames = first_frames(path, short_side)
        except BrokenVideo as error:
            print(f"  {path.name} is left out: {error}")
            continue
        if len(frames) >= LEAST_SECONDS * FPS and min(frames[0].shape[:2]) == short_side:
            found += 1
            yield path.name, list(itertools.islice(itertools.cycle(frames + frames[::-1]), SECONDS * FPS))


def first_frames(path: Path, short_side: int) -> list[np.ndarray]:
    """The first 15 s of a video, at 30 frames a second."""
    frames: list[np.ndarray] = []
    for frame, seconds in iterate_frames(path, short_side):
        # Each output frame shows the last source frame before its time.
        frames += [frame] * (min(int(seconds * FPS) + 1, SECONDS * FPS) - len(frames))
        if len(frames) == SECONDS * FPS:
            break
    return frames


def code(frames: list[np.ndarray], settings: EncodeSettings | dict[str, str], quality: bool = True) -> Coded:
    """Encodes a clip and compares some of its frames with the source."""
    options = settings.options(Fraction(FPS)) if isinstance(settings, EncodeSettings) else settings
    began = time.process_time()
    mp4 = encode_x264(frames, fps=FPS, options=options)
    seconds = time.process_time() - began
    if not quality:
        return Coded(mp4, 0, 0, seconds)
    with av.open(io.BytesIO(mp4), "r") as container:
        coded = [plane(frame) for rank, frame in enumerate(container.decode(video=0)) if rank % EVERY == 0]
    return Coded(mp4, *compare([luma(frame) for frame in frames[::EVERY]], coded), seconds)
