"""Columns of a clip table: their types, what their values must be, and how they are written and gathered.

Text offsets are 32 bits wide in an Arrow array, which so holds 2 GB at most; a table is many arrays, and nothing here
ever joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

REQUIRED = {
    "video": pa.string(),
    "start": pa.float64(),
    "end": pa.float64(),
    "texts": pa.list_(pa.string()),
}
KNOWN = REQUIRED | {
    "verbs": pa.list_(pa.int32()),
    "nouns": pa.list_(pa.int32()),
    "group": pa.int64(),
    "choices": pa.list_(pa.string()),
    "answer": pa.int32(),
    "question": pa.string(),
    "label": pa.int32(),
    "kind": pa.string(),
    "id": pa.string(),
    "answers": pa.list_(pa.string()),
    "query": pa.int64(),
    "choice": pa.int32(),
    "span_start": pa.float64(),
    "span_end": pa.float64(),
    "verb_label": pa.int32(),
    "noun_label": pa.int32(),
    "text_weights": pa.list_(pa.float32()),
}
# Rows of one record batch on disk. Text offsets are 32 bits wide within a batch, so a batch stays far below 2 GB.
BATCH_ROWS = 1 << 20
# Rows that are gathered into one Arrow array, for the same reason, and their bytes on average.
TAKEN_ROWS, TAKEN_BYTES = 1 << 18, 1 << 29


def check_schema(table: pa.Table) -> None:
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise ValueError(
            f"A clip table needs the columns {', '.join(REQUIRED)}; found {', '.join(table.column_names) or 'none'}, "
            f"without {', '.join(missing)}."
        )
    for name in table.column_names:
        found, expected = table.schema.field(name).type, KNOWN.get(name)
        if expected is not None and found != expected:
            raise ValueError(f"Column {name!r} of a clip table must be of type {expected}, found {found}.")
    if not table.num_rows:
        raise ValueError("A clip table needs at least one clip, found none; was everything filtered away?")


def check_values(batch: pa.Table | pa.RecordBatch, first_row: int = 0) -> None:
    for name in REQUIRED:
        if count := batch.column(name).null_count:
            raise ValueError(f"Column {name!r} must have a value in every clip, {count} clips have none.")
    for texts in batch.column("texts").chunks if isinstance(batch, pa.Table) else [batch.column("texts")]:
        if count := texts.flatten().null_count:
            raise ValueError(f"Column 'texts' must hold lists of sentences, {count} of their places are empty (None).")
    start, end = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("start", "end"))
    wrong = np.flatnonzero(~((start >= 0) & (start < end) & np.isfinite(end)))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"Every clip needs 0 <= start < end in seconds; {wrong.size} clips have not, the first is row "
            f"{first_row + row} ({batch.column('video')[row].as_py()}, {start[row]} to {end[row]})."
        )


def write_tables(path: str, tables: Iterable[pa.Table], metadata: Mapping[bytes, str]) -> None:
    """Batches of at most `BATCH_ROWS` rows, each checked; an error names the row as it is in the whole table."""
    row, schema, writer = 0, None, None
    with pa.OSFile(path, "wb") as sink:
        for table in tables:
            if not len(table):
                continue
            if schema is None or writer is None:
                check_schema(table)
                schema = table.schema.with_metadata(metadata)
                writer = pa.ipc.new_file(sink, schema)
            elif not same_columns(table.schema, schema):
                raise ValueError(
                    f"The columns changed from {describe(schema)} to {describe(table.schema)} at row {row}."
                )
            for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                check_values(batch, row)
                writer.write_batch(batch.replace_schema_metadata(metadata))
                row += len(batch)
        if writer is None:
            raise ValueError("A clip table needs at least one clip, found none; was everything filtered away?")
        writer.close()


def take(batches: Sequence[pa.RecordBatch], rows: np.ndarray) -> pa.Table:
    """These rows in this order. Arrow's own take would join all texts in one array, which holds 2 GB at most."""
    first_B = np.cumsum([0] + [len(batch) for batch in batches])
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    bounds_B = np.searchsorted(sorted_rows, first_B)
    parts = [
        batch.take(pa.array(sorted_rows[low:high] - first))
        for batch, first, low, high in zip(batches, first_B[:-1], bounds_B[:-1], bounds_B[1:], strict=True)
        if high > low
    ]
    if not parts:
        return pa.Table.from_batches([], batches[0].schema)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return pa.Table.from_batches(parts).take(pa.array(place))


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    # Whether a list may hold nothing, and under which name, differs between files that mean the same.
    return one.names == other.names and one.types == other.types


def describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
