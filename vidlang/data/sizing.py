"""Will the data keep up? What a training reads and decodes a second, against what disk and cores can give.

A step takes `batch` clips, and reading a clip reads the chunk that it lies in. So disk and step time allow chunks of

    seconds <= disk * step / (batch * bitrate)

and the cores must decode batch / step clips a second. Both are shared among `hosts` when each has its own disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizing:
    """A training and the machine that feeds it; every number is of all hosts together, but disk and cores of one.

    bitrate: of the store, in Mb a second. disk: MB a second. chunks_per_clip: 1, and a little more for clips that
    cross into a second chunk. clips_per_core: what `benchmarks/pipeline.py` prints for your clips.
    """

    batch: int
    step_seconds: float
    bitrate: float
    chunk_seconds: float
    disk: float
    clips_per_core: float
    cores: int
    hosts: int = 1
    chunks_per_clip: float = 1.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, found {value}")

    @property
    def clips_per_second(self) -> float:
        """What each host must deliver."""
        return self.batch / self.step_seconds / self.hosts

    @property
    def disk_needed(self) -> float:
        """MB a second that each host reads."""
        return self.clips_per_second * self.chunks_per_clip * self.bitrate / 8 * self.chunk_seconds

    @property
    def longest_chunk(self) -> float:
        """Seconds of the longest chunks that the disk can feed."""
        return self.chunk_seconds * self.disk / self.disk_needed

    @property
    def cores_needed(self) -> float:
        """Cores of each host that decode without a pause."""
        return self.clips_per_second / self.clips_per_core

    @property
    def fastest_step(self) -> float:
        """Seconds of the shortest step that disk and cores can feed."""
        return self.step_seconds * max(self.disk_needed / self.disk, self.cores_needed / self.cores)

    def report(self) -> str:
        """The answer in words, with what to change where it is no."""
        lines = [
            f"each host decodes {self.clips_per_second:,.0f} clips/s: {self.cores_needed:.1f} of {self.cores} cores",
            f"and reads {self.disk_needed:,.0f} of {self.disk:,.0f} MB/s, enough for chunks of "
            f"{self.longest_chunk:.0f} s (these have {self.chunk_seconds:g} s)",
            f"data is ready for steps of {self.fastest_step:.2f} s or more; yours take {self.step_seconds:g} s",
        ]
        if self.disk_needed > self.disk:
            lines.append(
                f"the disk is too slow: cut chunks of at most {self.longest_chunk:.0f} s, encode smaller, or use more "
                "or faster disks"
            )
        if self.cores_needed > self.cores:
            lines.append(
                "the cores are too few: encode for speed (--encoding=fast), a smaller short side, fewer frames a "
                f"clip, or {math.ceil(self.cores_needed)} cores a host"
            )
        if self.disk_needed <= self.disk and self.cores_needed <= self.cores:
            lines.append("the accelerators will not wait for data")
        return "\n".join(lines)
