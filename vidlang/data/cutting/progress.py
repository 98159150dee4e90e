"""How far a precut is, as numbers and as one line of text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vidlang.data.cutting.spool import Failure, Outcome


@dataclass
class Progress:
    """Counts of one run; what an earlier run had done counts as done, and not in the speed."""

    videos: int
    size: int  # bytes of all source files, 0 where they are not known
    done: int = 0
    written: int = 0  # bytes of all chunks
    hours: float = 0.0  # of video that is cut
    failures: list[Failure] = field(default_factory=list)
    finished: bool = False
    # Of this run alone:
    seconds: float = 0.0
    cut: int = 0
    read: int = 0  # bytes of source files
    left: int = 0  # bytes of source files when it began
    began: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """Counts what became of a video."""
        self.done += 1
        self.written += outcome.size
        self.hours += outcome.seconds / 3600
        if outcome.failure:
            self.failures.append(outcome.failure)

    def eta(self) -> float | None:
        """Seconds to go, by the bytes of the source files, or by their number; None before the first is done."""
        ended, total = (self.read, self.left) if self.size else (self.cut, self.videos - (self.done - self.cut))
        return (time.monotonic() - self.began) * (total - ended) / ended if ended else None

    def line(self) -> str:
        """One line for people."""
        spent = max(time.monotonic() - self.began, 1e-9)
        eta = self.eta()
        parts = [
            f"[{self.done}/{self.videos}] videos",
            f"{len(self.failures)} failed",
            f"{self.written / 1e9:.2f} GB",
            f"{self.hours:.2f} h of video",
            f"{self.seconds / spent:.1f} x realtime",
        ]
        parts += [f"ETA {_clock(eta)}"] if eta is not None and not self.finished else [f"{_clock(spent)} so far"]
        return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
