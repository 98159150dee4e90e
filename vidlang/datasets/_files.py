"""Published files read into plain values: csv, json, json lines and pickles, with errors that name file and place."""

from __future__ import annotations

import csv as python_csv
import gc
import json
import math
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from vidlang.core.config import did_you_mean

KINDS = {str: "a text", float: "a number", int: "a whole number", list: "a list", dict: "an object", bool: "true/false"}
# No sign: "-00:00:01" is minus a second to some and a second to others.
_TIME = re.compile(r"(?:(?:(?P<hours>[0-9]+):)?(?P<minutes>[0-9]+):)?(?P<seconds>[0-9]+(?:\.[0-9]*)?)")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of text that is no UTF-8
        raise ValueError(f"{path} is not JSON: {error}; is the download complete?") from error


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of a file of JSON lines; empty lines are skipped."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: not JSON: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists, tuples and dicts only: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        # Numbers that numpy computed are pickled through these three.
        if (module.replace("._core.", ".core."), name) == ("numpy.core.multiarray", "scalar"):
            return _plain_number
        if (module, name) in (("numpy", "dtype"), ("_codecs", "encode")):
            return np.dtype if module == "numpy" else _latin_bytes
        raise ValueError(f"it holds a {module}.{name}; only plain numbers, texts, lists and dicts are read")


def _plain_number(kind: np.dtype, data: bytes) -> Any:
    if kind.kind not in "biuf" or len(data) != kind.itemsize:
        raise ValueError(f"it holds a value of type {kind}; only plain numbers are read")
    return np.frombuffer(data, kind)[0].item()


def _latin_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it holds bytes encoded as {encoding!r}, which no plain number has")
    return text.encode("latin1")


def read_pickle(path: Path) -> Any:
    """The plain value of a pickle; anything that could run code is refused."""
    # Millions of small objects come to life and none of them dies: looking for dead ones takes longer than reading.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(f"{path} cannot be read as a pickle of plain values: {error}") from error
    finally:
        if collecting:
            gc.enable()


def field(record: Any, key: str, kind: type, where: str, default: Any = ...) -> Any:
    """One value of a JSON object, of the kind it must have; `where` names the record in errors."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object, found {short(record)}")
    if key not in record:
        if default is not ...:
            return default
        raise ValueError(
            f"{where}: there is no {key!r}{did_you_mean(key, record)}; found {', '.join(record) or 'none'}"
        )
    value = record[key]
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{where}: {key!r} must be {KINDS[kind]}, found {short(value)}")
    return value


def number(record: Any, key: str, where: str) -> float:
    """One number of a JSON object, which may be written as a text, as some publishers do."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{where}: {key!r} must be a number, found {short(value)}") from None
    else:
        value = float(field(record, key, float, where))
    if not math.isfinite(value):
        raise ValueError(f"{where}: {key!r} must be a number, found {value}")
    return value


def read_csv(
    path: Path,
    kinds: Mapping[str, type],
    *,
    optional: Mapping[str, type] | None = None,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
) -> pa.Table:
    """The columns named in `kinds` (str, float or int) and, where the file has them, `optional`.

    `names` are given for files without a header. A row with too few or too many fields is an error; `_columns` reads
    files that are known to have such rows.
    """
    optional = optional or {}
    wrong: list[str] = []

    def handle(row: Any) -> str:
        wrong.append(f"{row.actual_columns} fields in place of {row.expected_columns}: {short(row.text)}")
        return "error"

    found = names or header(path, delimiter)
    check_columns(path, kinds, found)
    wanted = [name for name in (*kinds, *optional) if name in found]
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=list(found), skip_rows=0 if names else 1),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=handle),
            convert_options=csv.ConvertOptions(
                include_columns=wanted, column_types={name: pa.string() for name in wanted}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        reason = f"a row has {wrong[-1]}" if wrong else str(error)
        raise ValueError(f"{path} cannot be read as a table with {len(found)} columns: {reason}") from error
    if not len(table):
        raise ValueError(f"{path} has no rows")
    for name, kind in {**kinds, **optional}.items():
        if name in found and kind is not str:
            numbers = parse_numbers(table.column(name), kind, path, name, first_row=1 if names else 2)
            table = table.set_column(table.column_names.index(name), name, numbers)
    return table


def parse_numbers(texts: pa.ChunkedArray, kind: type, path: Path, name: str, *, first_row: int) -> pa.ChunkedArray:
    """A column of texts as float64 or int64; an error names the first row that is none. Rows count the header."""
    trimmed = pc.utf8_trim_whitespace(texts)
    try:
        return trimmed.cast(pa.float64() if kind is float else pa.int64())
    except pa.ArrowInvalid:
        for row, value in enumerate(trimmed.to_pylist()):
            try:
                kind(value)
            except ValueError:
                where = f"{path}, row {row + first_row}, column {name!r}"
                raise ValueError(f"{where}: must be {KINDS[kind]}, found {short(value)}") from None
        # Python takes some spellings that Arrow does not, such as 1_000 and infinity.
        raise ValueError(f"{path}, column {name!r}: some values are not written as {KINDS[kind]}") from None


def parse_seconds(texts: Sequence[str], path: Path, name: str, *, first_row: int) -> np.ndarray:
    """Seconds of times written as hours:minutes:seconds (or less of it), float64."""
    seconds_R = np.empty(len(texts))
    for row, text in enumerate(texts):
        match = _TIME.fullmatch(text.strip())
        hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 60.0)
        # Only the largest unit that is written may have more than the next one holds.
        if match is None or (match["minutes"] and seconds >= 60) or (match["hours"] and minutes >= 60):
            where = f"{path}, row {row + first_row}, column {name!r}"
            raise ValueError(f"{where}: must be a time such as 00:01:02.50, found {short(text)}")
        seconds_R[row] = hours * 3600 + minutes * 60 + seconds
    return seconds_R


def parse_ids(text: str, where: str) -> list[int]:
    """Whole numbers of a list written as text, such as "[192, 115]"; "" and "[]" are empty."""
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    try:
        return [int(part) for part in inner.split(",")] if inner else []
    except ValueError:
        raise ValueError(f"{where}: must be a list of whole numbers, found {short(text)}") from None


def header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns of a csv file."""
    with open_text(path) as file:
        line = file.readline().rstrip("\r\n")
    if not line:
        raise ValueError(f"{path} is empty; is the download complete?")
    return [name.strip() for name in next(python_csv.reader([line], delimiter=delimiter))]


def check_columns(path: Path, wanted: Iterable[str], found: Sequence[str]) -> None:
    """Raises where a column is missing."""
    for name in wanted:
        if name not in found:
            hint = did_you_mean(name, found)
            raise ValueError(f"{path} has no column {name!r}{hint}; its columns are {', '.join(found)}")


def open_text(path: Path) -> IO[str]:
    """A text file, without the mark that some programs put in front of UTF-8."""
    return path.open(encoding="utf-8-sig", errors="replace")


def short(value: Any) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
