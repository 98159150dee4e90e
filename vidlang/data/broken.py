"""Clips that cannot be decoded: what stands in for them, and when there are too many to go on.

An exception inside Grain would end the stream, so the place that decodes answers a broken clip with another one and
writes the row of the broken one into the batch, as `broken_B`. The main process counts those rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from absl import logging

from vidlang.data.clips import ClipTable

# A share says something only about so many clips; a store where nothing can be decoded shows itself sooner.
_ENOUGH_FOR_SHARE = 256
_ENOUGH_FOR_ALL = 32


class BrokenClips:
    """Counts broken clips over the batches of one process, names each once, and stops when they are too many.

    Too many is more than `max_share` of at least 256 clips, or all of at least 32.
    """

    def __init__(self, table: ClipTable, max_share: float = 0.05) -> None:
        if not 0 <= max_share < 1:
            raise ValueError(f"max_share is a share of all clips, 0 <= max_share < 1, found {max_share}.")
        self._table = table
        self._max_share = max_share
        self.seen = 0
        self.broken = 0
        self.rows: set[int] = set()

    @property
    def share(self) -> float:
        """Broken clips as a share of all clips seen so far."""
        return self.broken / max(self.seen, 1)

    def update(self, batch: Mapping[str, np.ndarray]) -> int:
        """Takes in one batch, returns how many of its clips were broken, and raises when there are too many by now."""
        found = self.count(batch)
        self.check()
        return found

    def count(self, batch: Mapping[str, np.ndarray]) -> int:
        """Takes in one batch and returns how many of its clips were broken."""
        # Padding is no clip; everything else, valid or not, is one.
        broken_B = batch["broken_B"][batch["index_B"] >= 0]
        found = broken_B[broken_B >= 0].tolist()
        self.seen += len(broken_B)
        self.broken += len(found)
        for row in found:
            if row not in self.rows:
                self.rows.add(row)
                logging.warning("Could not decode %s and left it out.", describe(self._table, row))
        return len(found)

    def check(self, *, complete: bool = False) -> None:
        """Raises when too many clips were broken; `complete` says that all there is to see was seen."""
        all_broken = self.broken == self.seen >= (1 if complete else _ENOUGH_FOR_ALL)
        if not all_broken and (self.seen < _ENOUGH_FOR_SHARE or self.share <= self._max_share):
            return
        names = ", ".join(describe(self._table, row) for row in sorted(self.rows)[:3])
        raise ValueError(
            f"{self.broken} of {self.seen} clips could not be decoded ({self.share:.1%}, allowed are "
            f"{self._max_share:.1%}), among them {names}. Is the chunk store {self._table.store} complete? "
            "Precut it again, or drop these clips from the table."
        )


def describe(table: ClipTable, row: int) -> str:
    """A clip's name for people: its row, video and seconds."""
    video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
    return f"clip {row} ({video}, {start:.2f} to {end:.2f} s)"
