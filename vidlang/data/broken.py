"""Clips that cannot be decoded: what stands in for them, and when there are too many to go on.

An exception inside Grain would end the stream, so the place that decodes answers a broken clip with another one and
writes the row of the broken one, and what was wrong with it, into the batch, as `broken_B` and `broken_kind_B`. The
main process counts them by kind.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from vidlang.data.clips import ClipTable
from vidlang.data.failures import KINDS

# A share says something only about so many clips; a store where nothing can be decoded shows itself sooner.
_ENOUGH_FOR_SHARE = 256
_ENOUGH_FOR_ALL = 32
# Videos that are named one by one. After them the log tells only that there are ten times as many, and again.
_NAMED = 20


class BrokenClips:
    """Counts broken clips over the batches of one process, names their videos, and stops when they are too many.

    Too many is more than `max_share` of at least 256 clips, or all of at least 32. A mixture has a table for each of
    its sources.
    """

    def __init__(self, tables: ClipTable | Sequence[ClipTable], max_share: float = 0.05) -> None:
        if not 0 <= max_share < 1:
            raise ValueError(f"max_share is a share of all clips, 0 <= max_share < 1, found {max_share}.")
        self._tables = [tables] if isinstance(tables, ClipTable) else list(tables)
        self._max_share = max_share
        self._examples: list[str] = []
        self._next_told = 10 * _NAMED
        self.seen = 0
        self.counts: dict[str, int] = collections.Counter()
        self.videos: set[tuple[int, str]] = set()

    @property
    def broken(self) -> int:
        """Broken clips seen so far, of every kind."""
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """Broken clips as a share of all clips seen so far."""
        return self.broken / max(self.seen, 1)

    def metrics(self) -> dict[str, float]:
        """What a training writes down: broken clips so far, and how many of each kind that was met."""
        kinds = {f"broken_{kind}": float(count) for kind, count in sorted(self.counts.items())}
        return {"broken_clips": float(self.broken), **kinds}

    def update(self, batch: Mapping[str, np.ndarray]) -> int:
        """Takes in one batch, returns how many of its clips were broken, and raises when there are too many by now."""
        found = self.count(batch)
        self.check()
        return found

    def count(self, batch: Mapping[str, np.ndarray]) -> int:
        """Takes in one batch and returns how many of its clips were broken."""
        # Padding is no clip; everything else, valid or not, is one.
        self.seen += int((batch["index_B"] >= 0).sum())
        places = np.flatnonzero((batch["index_B"] >= 0) & (batch["broken_B"] >= 0)).tolist()
        for place in places:
            source = int(batch["source_B"][place]) if "source_B" in batch else 0
            kind = KINDS[int(batch["broken_kind_B"][place])]
            self.counts[kind] += 1
            self._name(source, int(batch["broken_B"][place]), kind)
        return len(places)

    def _name(self, source: int, row: int, kind: str) -> None:
        table = self._tables[source]
        video = (source, table.cell(row, "video"))
        if video in self.videos:
            return
        self.videos.add(video)
        if len(self.videos) <= _NAMED:
            self._examples.append(describe(table, row))
            logging.warning("Could not decode %s: %s. It was left out.", self._examples[-1], kind)
        elif len(self.videos) == self._next_told:
            self._next_told *= 10
            logging.warning("Clips of %d videos could not be decoded by now, %s.", len(self.videos), self._by_kind())

    def check(self, *, complete: bool = False) -> None:
        """Raises when too many clips were broken; `complete` says that all there is to see was seen."""
        all_broken = self.broken == self.seen >= (1 if complete else _ENOUGH_FOR_ALL)
        if not all_broken and (self.seen < _ENOUGH_FOR_SHARE or self.share <= self._max_share):
            return
        stores = ", ".join(sorted({str(table.store) for table in self._tables}))
        raise ValueError(
            f"{self.broken} of {self.seen} clips could not be decoded ({self.share:.1%}, allowed are "
            f"{self._max_share:.1%}; {self._by_kind()}), among them {', '.join(self._examples[:3])}. Is the chunk "
            f"store {stores} complete? Precut it again, or drop these clips from the table."
        )

    def _by_kind(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))


def describe(table: ClipTable, row: int) -> str:
    """A clip's name for people: its row, video and seconds."""
    video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
    return f"clip {row} ({video}, {start:.2f} to {end:.2f} s)"
