"""One video file to chunks: every frame at the store's rate and size, in closed pieces of equal length.

Output frame k of a video shows its picture at k / fps seconds, whatever rate or clock the source has, so chunk
boundaries do not drift and an annotation in seconds needs no other knowledge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidlang.data.container import VideoInfo, count_frames
from vidlang.data.decode import iterate_frames
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.mp4 import read_index

MOST_FPS, MOST_SECONDS, MOST_FRAMES = 1000, 3600, 10**6  # of a chunk; it is made and verified in memory
MOST_TICKS = 2**31 - 1  # what an MP4's clock counts to in a second


@dataclass(frozen=True)
class PrecutSettings:
    """How videos are cut; the defaults are the house's chunk format.

    A chunk holds round(chunk_seconds * fps) frames, the last one what is left. Frames shrink until their shorter side
    is `short_side`, with square pixels and even sizes; a smaller video keeps its size.
    """

    chunk_seconds: float = 15
    fps: int | Fraction = 30
    short_side: int = 288
    encode: EncodeSettings = field(default_factory=EncodeSettings)

    def __post_init__(self) -> None:
        # Compared before anything is computed: a float may be no number, and a fraction too large for one.
        if not 0 < self.fps <= MOST_FPS or max(Fraction(self.fps).as_integer_ratio()) > MOST_TICKS:
            raise ValueError(f"fps must be above 0 and at most {MOST_FPS}, such as 30 or 30000/1001, got {self.fps}")
        if not 0 < self.chunk_seconds <= MOST_SECONDS:
            raise ValueError(f"a chunk must last above 0 and at most {MOST_SECONDS} s, got {self.chunk_seconds}")
        if not 1 <= self.frames_per_chunk <= MOST_FRAMES:
            raise ValueError(
                f"a chunk must hold a frame or more and at most {MOST_FRAMES}, got {self.chunk_seconds} s "
                f"at {self.fps} frames a second"
            )
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"short_side must be an even number of pixels, got {self.short_side}")

    @property
    def frames_per_chunk(self) -> int:
        """Frames in every chunk but the last."""
        return round(self.chunk_seconds * Fraction(self.fps))


@dataclass(frozen=True)
class CutVideo:
    """One video as chunks of MP4, in order; `chunks` may be any sequence that reads them when asked."""

    name: str
    fps: int | float | Fraction
    width: int
    height: int
    chunks: Sequence[bytes]
    chunk_frames: Sequence[int]


def cut_video(path: str | Path, name: str, settings: PrecutSettings) -> CutVideo:
    """One video file as chunks in memory; BrokenVideo when it cannot be read to its end."""
    chunks, infos = zip(*cut_chunks(path, settings), strict=True)
    return CutVideo(
        name, settings.fps, infos[0].width, infos[0].height, list(chunks), tuple(info.frames for info in infos)
    )


def cut_chunks(path: str | Path, settings: PrecutSettings) -> Iterator[tuple[bytes, VideoInfo]]:
    """The chunks of one video file in order, each as MP4 and what a reader finds in it; every one was decoded."""
    frames = resample(iterate_frames(path, settings.short_side), settings.fps)
    for first in frames:
        counted = _Counted(itertools.chain([first], itertools.islice(frames, settings.frames_per_chunk - 1)))
        mp4 = encode_mp4(counted, fps=settings.fps, settings=settings.encode)
        yield mp4, verify(mp4, counted.number, first.shape)


class _Counted:
    """An iterable that knows how many items it gave."""

    def __init__(self, items: Iterable[np.ndarray]) -> None:
        self._items, self.number = items, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for item in self._items:
            self.number += 1
            yield item


def verify(mp4: bytes, frames: int, shape: tuple[int, ...]) -> VideoInfo:
    """What a reader finds in a chunk that was just encoded; RuntimeError when it is not what went in.

    It is decoded whole and on its own. Each of its GOPs is closed: no frame refers to one before the keyframe.
    """
    found, index = count_frames(mp4), read_index(mp4)
    if (found.frames, found.height, found.width) != (frames, *shape[:2]):
        raise RuntimeError(
            f"a chunk of {frames} frames of {shape[0]} x {shape[1]} pixels was encoded, and decodes as {found}"
        )
    if len(index.sizes) != frames or (index.ranks[index.keys] != index.keys).any():
        raise RuntimeError("a chunk was encoded whose index or whose keyframes do not fit its frames")
    return found


def resample(timed: Iterable[tuple[np.ndarray, float]], fps: int | Fraction) -> Iterator[np.ndarray]:
    """Frames at the times k / fps after the first: each the source frame nearest in time, the earlier of two.

    The last source frame lasts as long as frames do on average.
    """
    before: tuple[np.ndarray, float] | None = None
    start, number, sources, rate = 0.0, 0, 0, float(fps)
    for frame, seconds in timed:
        if before is None:
            start = seconds
        else:
            # The small number keeps rounded clocks from breaking ties at random.
            middle = (before[1] + seconds) / 2 - start + 1e-6
            while number / rate <= middle:
                yield before[0]
                number += 1
        before = (frame, seconds)
        sources += 1
    if before is None:
        return
    length = before[1] - start
    period = length / (sources - 1) if sources > 1 else 1 / rate
    for _ in range(number, max(1, round((length + period) * rate))):
        yield before[0]
