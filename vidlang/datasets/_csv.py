"""Tables published as csv or tsv that fit in memory, read in columns; errors name the file's row, the header being 1.

Rows are counted as a spreadsheet counts them: a blank line is a row, though it gives none in the table.
"""

from __future__ import annotations

import csv as python_csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from vidlang.core.config import did_you_mean
from vidlang.datasets._files import KINDS, open_text, short

DELIMITERS = (",", "\t", ";", "|")
# No sign: "-00:00:01" is minus a second to some and a second to others.
_TIME = re.compile(r"(?:(?:(?P<hours>[0-9]+):)?(?P<minutes>[0-9]+):)?(?P<seconds>[0-9]+(?:\.[0-9]*)?)")


def read_csv(path: Path, kinds: Mapping[str, type], **options: Any) -> pa.Table:
    """The columns of `numbered_csv` alone, where no error will need the row of a value."""
    return numbered_csv(path, kinds, **options)[0]


def csv_rows(path: Path, kinds: Mapping[str, type], **options: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row in the file, values by column) of each row of `numbered_csv`, for files that are small enough for it."""
    table, number_R = numbered_csv(path, kinds, **options)
    return zip(number_R.tolist(), table.to_pylist(), strict=True)


def numbered_csv(
    path: Path,
    kinds: Mapping[str, type],
    *,
    optional: Mapping[str, type] | None = None,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
) -> tuple[pa.Table, np.ndarray]:
    """The columns named in `kinds` (str, float or int) and, where the file has them, `optional`; and the file's rows.

    `names` are given for files without a header. A row with too few or too many fields is an error; `_columns` reads
    files that are known to have such rows.
    """
    all_kinds = {**kinds, **(optional or {})}
    found = list(names or header(path, delimiter))
    check_columns(path, kinds, found)
    wanted = [name for name in all_kinds if name in found]
    if twice := [name for name in wanted if found.count(name) > 1]:
        raise ValueError(f"{path} has {found.count(twice[0])} columns {twice[0]!r}; rename or remove all but one")
    first = 1 if names else 2
    table = _read_texts(path, found, wanted, delimiter, first - 1)
    blank_R = blank_rows(table)
    if blank_R.any():  # or their values are in columns that were not asked for
        blank_R = blank_rows(_read_texts(path, found, [], delimiter, first - 1))
        table = table.filter(pa.array(~blank_R))
    number_R = np.flatnonzero(~blank_R) + first
    if not len(table):
        raise ValueError(f"{path} has no rows")
    for place, name in enumerate(wanted):
        if (kind := all_kinds[name]) is not str:
            table = table.set_column(place, name, parse_numbers(table.column(name), kind, path, name, number_R))
    return table, number_R


def blank_rows(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Which rows of a table of texts have no value at all, as those of blank lines."""
    blank_R = np.ones(len(table), bool)
    for column in table.columns:
        blank_R &= np.asarray(pc.equal(column, ""), bool)
    return blank_R


def _read_texts(path: Path, found: list[str], wanted: list[str], delimiter: str, skip: int) -> pa.Table:
    """The wanted columns (all, where none is named) as texts, with rows for blank lines."""

    def read(threads: bool, handle: Callable[[Any], str]) -> pa.Table:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=found, skip_rows=skip, use_threads=threads),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=handle
            ),
            convert_options=csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(found, pa.string()), strings_can_be_null=False
            ),
        )

    wrong: list[str] = []

    def handle(row: Any) -> str:
        count = f"row {row.number} has {row.actual_columns} fields in place of {row.expected_columns}"
        wrong.append(f"{count}: {short(row.text)}; a text that holds {delimiter!r} needs quotes")
        return "error"

    try:
        return read(True, lambda row: "error")
    except pa.ArrowInvalid:
        try:
            return read(False, handle)  # one thread alone knows the number of a row
        except pa.ArrowInvalid as error:
            raise unreadable(path, len(found), wrong[-1] if wrong else str(error)) from error


def unreadable(path: Path, columns: int, reason: str) -> ValueError:
    """What to raise for a file that Arrow cannot read: a line that is no UTF-8, else the reason that is given."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = short(line[max(0, error.start - 10) : error.end + 10])
                return ValueError(f"{path}, line {number}: not UTF-8, found {found}; save it as UTF-8")
    return ValueError(f"{path} cannot be read as a table with {columns} columns: {reason}")


def parse_numbers(texts: pa.ChunkedArray, kind: type, path: Path, name: str, number_R: np.ndarray) -> pa.ChunkedArray:
    """A column of texts as float64 or int64; `number_R` are its rows in the file, for the first that is none."""
    return as_type(pc.utf8_trim_whitespace(texts), pa.float64() if kind is float else pa.int64(), path, name, number_R)


def as_type(column: pa.ChunkedArray, kind: pa.DataType, path: Path, name: str, number_R: np.ndarray) -> pa.ChunkedArray:
    """A column of texts or numbers in an Arrow type; an error names the first row whose value is none of it."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        words = KINDS[int] if pa.types.is_integer(kind) else KINDS[float]
        for number, value in zip(number_R.tolist(), column.to_pylist(), strict=True):
            try:
                pa.scalar(value).cast(kind)
            except pa.ArrowInvalid:
                where = f"{path}, row {number}, column {name!r}"
                size = f" of {kind.bit_width} bits" if str(value).lstrip("+-").isdigit() else ""
                raise ValueError(f"{where}: must be {words}{size}, found {short(value)}") from None
        raise


def parse_seconds(texts: Sequence[str], path: Path, name: str, number_R: np.ndarray) -> np.ndarray:
    """Seconds of times written as hours:minutes:seconds (or less of it), float64; `number_R` are rows in the file."""
    seconds_R = np.empty(len(texts))
    for row, text in enumerate(texts):
        match = _TIME.fullmatch(text.strip())
        hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 60.0)
        # Only the largest unit that is written may have more than the next one holds.
        if match is None or (match["minutes"] and seconds >= 60) or (match["hours"] and minutes >= 60):
            where = f"{path}, row {number_R[row]}, column {name!r}"
            raise ValueError(f"{where}: must be a time such as 00:01:02.50, found {short(text)}")
        seconds_R[row] = hours * 3600 + minutes * 60 + seconds
    return seconds_R


def header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns of a csv file."""
    with open_text(path) as file:
        line = file.readline()
        more = file.readline()
    if not line.strip():
        reason = (
            "has a blank first line; the columns' names belong there" if more else "is empty; is the download complete?"
        )
        raise ValueError(f"{path} {reason}")
    names = [name.strip() for name in next(python_csv.reader([line.rstrip("\r\n")], delimiter=delimiter))]
    if len(names) == 1 and (other := [mark for mark in DELIMITERS if mark != delimiter and mark in line]):
        raise ValueError(
            f"{path} is separated by {other[0]!r}, expected {delimiter!r}; its first line is {short(line)}"
        )
    return names


def check_columns(path: Path, wanted: Iterable[str], found: Sequence[str]) -> None:
    """Raises where a column is missing."""
    for name in wanted:
        if name not in found:
            hint = did_you_mean(name, found)
            raise ValueError(f"{path} has no column {name!r}{hint}; its columns are {', '.join(found)}")
