"""Columns of a table in a batch: what `clip.fields` names, and how each arrives.

    a column of numbers, label       label_B      the number
    a column of lists, verbs         verbs_BK     int32, filled up with -1 to the longest list of the table
    relevancy                        relevancy_B  float32: how well the text that was drawn fits, from text_weights

`text_weights` holds a number for each of a clip's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vidlang.data.clip_columns import KNOWN
from vidlang.data.clips import ClipTable

RELEVANCY, WEIGHTS = "relevancy", "text_weights"


@dataclass(frozen=True)
class Field:
    """A column as it is in a batch: what it is called there, the shape of one row's value, and its type."""

    column: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def value(self, table: ClipTable, row: int, text: int) -> Any:
        """What row `row` has, where its text number `text` was drawn; a row that only pads a batch has nothing."""
        if self.column == RELEVANCY:
            return 0.0 if row < 0 else _weight(table, row, text)
        if not self.shape:
            return 0 if row < 0 else table.cell(row, self.column)
        found = np.full(self.shape, -1, self.dtype)
        values = [] if row < 0 else table.cell(row, self.column) or []
        found[: len(values)] = values
        return found


def read_fields(table: ClipTable, columns: Sequence[str]) -> tuple[Field, ...]:
    """The fields of these columns; ValueError for one that no batch can hold."""
    return tuple(_field(table, column) for column in columns)


def expected_field(column: str) -> Field | None:
    """What a column of this name is like in any table that has it, where that is known; lists as of one entry."""
    if column == RELEVANCY:
        return Field(column, "relevancy_B", (), np.dtype(np.float32))
    kind = KNOWN.get(column)
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    if pa.types.is_list(kind):
        return Field(column, f"{column}_BK", (1,), np.dtype(np.int32)) if kind.value_type == pa.int32() else None
    # Arrow's own answer would need pandas.
    return Field(
        column, f"{column}_B", (), np.dtype(f"{'f' if pa.types.is_floating(kind) else 'i'}{kind.bit_width // 8}")
    )


def _field(table: ClipTable, column: str) -> Field:
    if column == RELEVANCY:
        if WEIGHTS not in table.columns:
            raise ValueError(
                f"clip.fields has 'relevancy', which comes from the column {WEIGHTS}; the table has "
                f"{', '.join(table.columns)}. Leave it out, or load a table with that column"
            )
        return Field(column, "relevancy_B", (), np.dtype(np.float32))
    kind = table.arrow(column).type
    if not pa.types.is_list(kind):
        return Field(column, f"{column}_B", (), table.dtype(column))
    if not pa.types.is_integer(kind.value_type):
        raise ValueError(
            f"clip.fields has {column!r}, a column of {kind}; a batch holds numbers and lists of whole numbers"
        )
    return Field(column, f"{column}_BK", (max(1, int(table.lengths(column).max())),), np.dtype(np.int32))


def _weight(table: ClipTable, row: int, text: int) -> float:
    weights = table.cell(row, WEIGHTS) or []
    if text >= len(weights):
        raise ValueError(f"row {row} of the table has {len(weights)} {WEIGHTS} and more texts; give each text one")
    return float(weights[text])
