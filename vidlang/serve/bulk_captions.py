"""What a captioner says of all clips of a table of any size, kept as Parquet (`data.bulk_store`).

How the work is cut up is `bulk_work`: captions are the same bytes whichever files were there already, whoever made the
others, and however many JAX processes shared the batches. A clip that could not be read has one line without a caption,
so that every row of the table is in its file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vidlang.data.bulk_store import CAPTION, CAPTIONS, PLACE, PROMPT, SAID, SCORE, BulkStore
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import identity
from vidlang.serve.bulk_work import BulkWork, Progress, kept_columns
from vidlang.serve.captions import Caption, Captioner
from vidlang.train.extract import Part


def narrate(
    speaker: Captioner,
    table: ClipTable,
    out: str | Path,
    *,
    columns: Sequence[str] = (),
    shard_rows: int = 2048,
    part: Part = Part(),  # noqa: B008, it is frozen
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Makes what the folder `out` still lacks of this part, and says what was made here.

    columns: of the table, to keep beside those that name a clip. shard_rows: clips of a file. In the end
    `speaker.timing` says what it took.
    """
    kept = kept_columns(table, columns, CAPTIONS)
    # To the whole table, for room and shapes must not depend on what is there already.
    speaker.fit(table)
    header = {"table": identity(table), "rows": len(table), "shard_rows": shard_rows, "columns": kept}
    header |= {"samples": speaker.decoding.samples}
    work = BulkWork(BulkStore(out, CAPTIONS, header, {SAID.name: speaker.note}), table, kept, progress)
    shards = work.lacking(SAID.name, part)
    work.told.total = sum(len(work.store.rows_of(shard)) for shard in shards)
    work.told.lost = "have no caption"
    for some, rows_N in work.passes(shards, speaker.batch_size):
        with contextlib.closing(speaker.batches(table, rows_N)) as batches:
            for shard in some:
                said = _said_of(work.store.rows_of(shard), batches, work)
                _write(shard, said, work, speaker, table)
            next(batches, None)  # the end of the pass, which says whether too many were broken
    return work.finish()


def _said_of(rows: range, batches: Iterator[list[list[Caption]]], work: BulkWork) -> list[list[Caption]]:
    """The captions of each of these rows, which the next batches are about."""
    said: list[list[Caption]] = []
    while len(said) < len(rows):
        # What fills up the last batch is no clip of its own.
        found = next(batches)[: len(rows) - len(said)]
        said += found
        work.told.done += len(found)
        work.told.sentences += sum(map(len, found))
        work.told.broken += sum(not captions for captions in found)
        work.tell()
    return said


def _write(shard: int, said: Sequence[list[Caption]], work: BulkWork, speaker: Captioner, table: ClipTable) -> None:
    """The file of these captions."""
    first = work.store.rows_of(shard).start
    lines = [
        (row, place, caption)
        for row, captions in enumerate(said, start=first)
        for place, caption in enumerate(captions or [None])
    ]
    own = {
        PROMPT: pa.array([speaker.prompt.of(table, row) for row, _, _ in lines], pa.string()),
        PLACE: pa.array([place for _, place, _ in lines], pa.int32()),
        CAPTION: pa.array([each and each.caption for _, _, each in lines], pa.string()),
        SCORE: pa.array([each and each.score for _, _, each in lines], pa.float32()),
    }
    row_V = np.array([row for row, _, _ in lines], np.int64)
    work.write(SAID.name, shard, {**work.columns(row_V), **own}, sum(not captions for captions in said))
