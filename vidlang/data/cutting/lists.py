"""Lists of videos in a file: a table with the columns path and, if wanted, name, or a path a line."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator

from vidlang.data.stores.remote import is_address

LISTS = (".csv", ".tsv", ".txt")


def read_list(content: bytes, place: str, folder: str) -> list[tuple[str, str]]:
    """The (name, path) pairs of a list; paths are relative to the list's own folder.

    A list that is not quite a table is refused: a quote too many would swallow the videos behind it.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the list {place!r} is not UTF-8 text: {error}") from error
    pairs = []
    for path, name in _lines(text) if place.lower().endswith(".txt") else _table(text, place):
        if path:
            name = name or posixpath.splitext(posixpath.basename(path))[0]
            pairs.append((name, path if is_address(path) else posixpath.join(folder, path)))
    if not pairs:
        raise ValueError(f"the list {place!r} names no video")
    return pairs


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in io.StringIO(text, newline=None):
        yield line.strip(), ""


def _table(text: str, place: str) -> Iterator[tuple[str, str]]:
    """(path, name) of each row, "" where there is none."""
    delimiter = "\t" if place.lower().endswith(".tsv") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for row in reader:
            if columns is None:
                columns = _columns(row, place)
            elif row:
                if len(row) != len(columns):
                    raise ValueError(f"it has {len(row)} fields, the first line {len(columns)}")
                named = dict(zip(columns, row, strict=True))
                path, name = named["path"].strip(), named.get("name", "").strip()
                if "\n" in path + name or "\r" in path + name:
                    raise ValueError(f"a line ends inside {path + name!r}: is there a quote too many?")
                yield path, name
    except (csv.Error, ValueError) as error:
        if columns is None and not isinstance(error, csv.Error):
            raise
        raise ValueError(f"line {reader.line_num} of the list {place!r} cannot be read: {error}; mend it") from error
    if columns is None:
        _columns([], place)


def _columns(row: list[str], place: str) -> list[str]:
    columns = [column.strip() for column in row]
    if "path" not in columns or len({*columns}) < len(columns):
        raise ValueError(f"the list {place!r} has columns {columns}; it needs one 'path' and may have one 'name'")
    return columns
