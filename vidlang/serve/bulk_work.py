"""The files that one command makes of a table's rows (`data.bulk_store`), gone through by all JAX processes together.

The clips of each file are filled into whole batches by themselves, so that what is made of them does not depend on
which files are still to be made, or on who makes the others: a run that was killed, or shared out over parts, leaves
the same bytes as one that was not. Each process decodes its rows of every batch, and they take turns in writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jax.experimental import multihost_utils

from vidlang.data.bulk_store import ROW, BulkStore, Holding
from vidlang.data.clips import ClipTable
from vidlang.train.extract import Part

# Columns that are kept of every table, where it has them.
NAMES = ("video", "start", "end", "id")
# Clips of one pass: their rows of the table are copied for the processes that decode.
PASS_ROWS = 1 << 20


@dataclass
class Progress:
    """Clips and sentences that were done here, of how many clips; those of them that could not be read, and are `lost`.

    standing: in the end, which files are there, whoever made them.
    """

    total: int = 0
    done: int = 0
    sentences: int = 0
    broken: int = 0
    lost: str = "are NaN"
    standing: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the model was ready."""
        return max(time.monotonic() - self.began, 1e-9)

    def __str__(self) -> str:
        broken = f", {self.broken} of which could not be read and {self.lost}" if self.broken else ""
        texts = f", {self.sentences} sentences" if self.sentences else ""
        rate = f"{self.done / self.seconds:.3g} clips/s" if self.done else "no clips"
        return f"{self.done} clips{broken}{texts} in {self.seconds:.1f} s, {rate}"


class BulkWork:
    """What all files of one command have in common."""

    def __init__(
        self,
        store: BulkStore,
        table: ClipTable,
        kept: Sequence[str],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """kept: columns of the table that stand in each file. progress: is told of `told`, now and then."""
        self.store, self._table, self._kept, self._progress = store, table, kept, progress
        self._begun, self._turn = False, 0
        self.told = Progress()

    def lacking(self, kind: str, part: Part) -> list[int]:
        """The files of this part that are to be made; process 0 looks, for others may see them later."""
        shards = range(part.number, self.store.shards, part.count)
        lacks_S = np.array([not self.store.has(kind, shard) for shard in shards], np.int32)
        if jax.process_count() > 1 and len(lacks_S):
            lacks_S = np.asarray(multihost_utils.broadcast_one_to_all(lacks_S))
        return [shard for shard, lacks in zip(shards, lacks_S.tolist(), strict=True) if lacks]

    def passes(self, shards: Sequence[int], batch_size: int) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """(some of these files, the rows of one pass over their clips: each file in whole batches)."""
        size = max(1, PASS_ROWS // self.store.shard_rows)
        for first in range(0, len(shards), size):
            some = shards[first : first + size]
            yield some, np.concatenate([filled_up(self.store.rows_of(shard), batch_size) for shard in some])

    def columns(self, row_V: np.ndarray) -> dict[str, Any]:
        """What names the clip of each line."""
        chosen = self._table.select(row_V) if len(row_V) else None
        found: dict[str, Any] = {ROW: pa.array(row_V, pa.int64())}
        for name in self._kept:
            whole = self._table.arrow(name)
            found[name] = chosen.arrow(name) if chosen is not None else whole.slice(0, 0)
        return found

    def write(self, kind: str, shard: int, columns: Mapping[str, Any], broken: int) -> None:
        """Writes a file that all processes have, in one of them."""
        if not self._begun:
            self._begun = True
            if jax.process_index() == 0:
                self.store.begin()
            _together("the files are begun")
        if self._turn % jax.process_count() == jax.process_index():
            self.store.write(kind, shard, columns, broken)
        self._turn += 1
        self.tell()

    def tell(self) -> None:
        """Says how far it is."""
        if self._progress is not None:
            self._progress(self.told)

    def finish(self) -> Progress:
        """What was done, once all processes have written."""
        _together("the files are written")
        if jax.process_index() == 0:
            self.store.sweep()
        self.told.standing = self.store.standing()
        return self.told


def kept_columns(table: ClipTable, more: Sequence[str], holding: Holding) -> list[str]:
    """The columns of the table that stand beside what is made of each clip."""
    kept = list(dict.fromkeys([*(name for name in NAMES if name in table.columns), *more]))
    if missing := [name for name in kept if name not in table.columns]:
        raise ValueError(f"the table has no column {missing[0]!r}; it has {', '.join(table.columns)}")
    if taken := [name for name in kept if name in holding.own]:
        raise ValueError(f"the column {taken[0]!r} has a name that {holding.what} have for their own; leave it out")
    return kept


def filled_up(rows: range, batch_size: int) -> np.ndarray:
    """These rows in whole batches, the last of which is filled up with the last row."""
    batches = -(-len(rows) // batch_size)
    return rows.start + np.minimum(np.arange(batches * batch_size), len(rows) - 1)


def _together(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
