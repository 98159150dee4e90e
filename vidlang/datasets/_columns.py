"""Published csv files of millions of rows, read part by part and whole columns at a time.

What the authors' own readers leave out (a row with too few or too many fields, or whose numbers are none) is left out
here too, counted and shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging
from pyarrow import csv

from vidlang.datasets._csv import blank_rows, check_columns, header, unreadable
from vidlang.datasets._files import KINDS, short

# Bytes that are parsed at once. A row must fit.
BLOCK = 16 << 20
# "[192, 115]", "[]" or nothing; ids of more digits would not fit their column.
_ID_LIST = r"^\s*(\[\s*(\d{1,9}\s*(,\s*\d{1,9}\s*)*,?)?\s*\])?\s*$"


def stream_csv(path: Path, kinds: Mapping[str, type], *, delimiter: str = ",") -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Parts of the columns named in `kinds` (str, float, int, or list for ids written as "[192, 115]").

    Each part comes with the row of the file that each of its rows is, the header being row 1.
    """
    found = header(path, delimiter)
    check_columns(path, kinds, found)
    left_out = _LeftOut(path, len(found))
    options = {
        # Only one thread at a time knows the number of a row.
        "read_options": csv.ReadOptions(column_names=found, skip_rows=1, block_size=BLOCK, use_threads=False),
        "parse_options": csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            ignore_empty_lines=False,  # they count as rows do
            invalid_row_handler=left_out.misshapen,
        ),
        "convert_options": csv.ConvertOptions(
            include_columns=list(kinds), column_types=dict.fromkeys(kinds, pa.string()), strings_can_be_null=False
        ),
    }
    count = kept = 0
    try:
        for batch in csv.open_csv(path, **options):
            number_R = left_out.numbers(count, len(batch))
            count += len(batch)
            if (blank_R := blank_rows(batch)).any():
                batch, number_R = batch.filter(pa.array(~blank_R)), number_R[~blank_R]
            table, number_R = _convert(batch, kinds, number_R, left_out)
            kept += len(table)
            if len(table):
                yield table, number_R
    except pa.ArrowInvalid as error:
        raise unreadable(path, len(found), str(error)) from error
    left_out.report(kept)


def float_column(texts: pa.Array) -> pa.Array:
    """float64, without a value where a text is no finite number."""
    trimmed = pc.utf8_trim_whitespace(texts)
    try:
        numbers = trimmed.cast(pa.float64())
    except pa.ArrowInvalid:
        numbers = pa.array([_number(text) for text in trimmed.to_pylist()], pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def int_column(texts: pa.Array) -> pa.Array:
    """int64, without a value where a text is no whole number."""
    trimmed = pc.utf8_trim_whitespace(texts)
    fits = pc.match_substring_regex(trimmed, r"^[+-]?\d{1,18}$")
    return pc.if_else(fits, trimmed, pa.scalar(None, pa.string())).cast(pa.int64())


def id_lists(texts: pa.Array) -> pa.Array:
    """Lists of int32 from texts such as "[192, 115]"; without a value where a text is no list of whole numbers."""
    fits = pc.fill_null(pc.match_substring_regex(texts, _ID_LIST), False)
    inner = pc.if_else(fits, texts, "")
    for letter in ("[", "]", " ", "\t"):
        inner = pc.replace_substring(inner, letter, "")
    parts = pc.split_pattern(inner, ",")
    values = parts.flatten()
    present = pc.not_equal(values, "")
    # Nothing between two commas, or in an empty list, is a part too: offsets count the parts that hold a number.
    before = np.concatenate([[0], np.cumsum(present.to_numpy(zero_copy_only=False))])
    offsets = before[parts.offsets.to_numpy()].astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values.filter(present).cast(pa.int32()), mask=pc.invert(fits))


_CONVERT = {str: lambda texts: texts, float: float_column, int: int_column, list: id_lists}
_WORDS = KINDS | {list: "a list of whole numbers"}


def _convert(
    batch: pa.RecordBatch, kinds: Mapping[str, type], number_R: np.ndarray, left_out: _LeftOut
) -> tuple[pa.Table, np.ndarray]:
    columns = {name: _CONVERT[kind](batch.column(name)) for name, kind in kinds.items()}
    good_R = np.ones(len(batch), bool)
    for name, column in columns.items():
        if column.null_count:
            bad_R = column.is_null().to_numpy(zero_copy_only=False)
            row = int(np.argmax(bad_R))
            text = short(batch.column(name)[row].as_py())
            left_out.add(
                int((bad_R & good_R).sum()),
                f"row {number_R[row]}, column {name!r}: must be {_WORDS[kinds[name]]}, found {text}",
            )
            good_R &= ~bad_R
    table = pa.table(columns)
    return (table, number_R) if good_R.all() else (table.filter(pa.array(good_R)), number_R[good_R])


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class _LeftOut:
    """Rows that could not be read, and how those that could are numbered in the file."""

    def __init__(self, path: Path, columns: int) -> None:
        self.path, self.columns = path, columns
        self.count, self.first = 0, ""
        self._misshapen: list[int] = []

    def misshapen(self, row: Any) -> str:
        """What Arrow calls for a row that has not one field a column."""
        self._misshapen.append(row.number)
        self.add(1, f"row {row.number} has {row.actual_columns} fields in place of {self.columns}: {short(row.text)}")
        return "skip"

    def add(self, count: int, words: str) -> None:
        self.count += count
        self.first = self.first or words

    def numbers(self, first: int, count: int) -> np.ndarray:
        """The rows in the file of `count` well-formed rows, of which there were `first` before."""
        misshapen = np.array(self._misshapen, np.int64)
        place_R = np.arange(first, first + count) + 2
        return place_R + np.searchsorted(misshapen - np.arange(len(misshapen)), place_R, side="right")

    def report(self, kept: int) -> None:
        if not kept:
            raise ValueError(f"{self.path}: " + (f"no row can be read, {self.first}" if self.first else "has no rows"))
        if self.count:
            logging.warning("%s: left out %d rows of %d: %s", self.path, self.count, self.count + kept, self.first)
