"""A table of clips: which seconds of which video, and what was said about them.

One row is one clip. The table is columnar (Arrow) and memory-mapped from its file, so that tens of millions of rows
cost no Python objects and all worker processes share one copy. Every table has the columns of `REQUIRED`; a column
named in `KNOWN` must have the type given there; other columns are carried along untouched.

| column | meaning |
|---|---|
| video, start, end | name of the video in the store, and the clip's seconds in it |
| texts | one or several sentences, each of which describes the clip |
| text_weights | how well each of the sentences fits |
| verbs, nouns | class ids that occur in the sentences |
| group | clips with the same value are hard negatives of each other |
| question, choices, answer | a multiple-choice question; answer is the index of the right choice |
| label, kind | class id; which sort of row this is, where a table mixes several |
| verb_label, noun_label | class ids of an action's two parts |
| id | how the publishers call this row, for files of results |
| answers | an open question's right answers, one for each person asked |
| query, choice, answer | a text with clips to choose from, a row each: its number, this clip's place, the right one's |
| span_start, span_end | the seconds that a query asks for; start and end are where to look |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.data.clip_columns import (
    KNOWN,
    TAKEN_BYTES,
    TAKEN_ROWS,
    check_schema,
    check_values,
    describe,
    same_columns,
    take,
    write_tables,
)

_METADATA = b"vidlang_clips"
_VERSION = 1


class ClipTable:
    """Clips in columns, with the path of the chunk store that holds their videos."""

    def __init__(self, table: pa.Table, store: str | os.PathLike[str] | None = None) -> None:
        check_schema(table)
        self._table = table
        # Arrow makes the list of its names anew each time it is asked, which costs more than reading a value.
        self._columns = dict(zip(table.column_names, table.columns, strict=True))
        self.store: str | None = None if store is None else _absolute(store)
        self.path: str | None = None
        # The tables that this one is a concatenation of: each finds its own rows again in another process.
        self._parts: tuple[ClipTable, ...] = ()

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Sequence[Any]], store: str | os.PathLike[str] | None = None
    ) -> ClipTable:
        """Build a table from one sequence a column; known columns are converted to their types."""
        arrays = {name: _array(name, values) for name, values in columns.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The columns of a clip table must have the same length, found {lengths}.")
        table = cls(pa.table(arrays), store=store)
        check_values(table._table)
        return table

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ClipTable:
        """Map a saved table into memory; nothing is read before it is asked for."""
        path = os.path.abspath(path)
        if not os.path.isfile(path):
            raise ValueError(f"There is no clip table at {path}; ClipTable.save writes one.")
        try:
            table = pa.ipc.open_file(pa.memory_map(path)).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a clip table (an Arrow file): {error}") from error
        opened = cls(table, store=_stored_path(table, path))
        opened.path = path
        return opened

    @classmethod
    def write(
        cls, path: str | os.PathLike[str], tables: Iterable[pa.Table], store: str | os.PathLike[str] | None = None
    ) -> ClipTable:
        """Write Arrow tables of the same columns one after another to one file and open it.

        Only one of them is in memory at a time, so a generator makes tables of any size.
        """
        path = os.path.abspath(path)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        metadata = {_METADATA: json.dumps({"version": _VERSION, "store": _path_in_file(store, folder)})}
        # Renamed into place, so that a reader never maps a half-written file.
        partial = f"{path}.{os.getpid()}.partial"
        try:
            write_tables(partial, tables, metadata)
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
        return cls.open(path)

    def save(self, path: str | os.PathLike[str]) -> ClipTable:
        """Write the table to one file and return it as opened from there, memory-mapped."""
        return ClipTable.write(path, [self._table], self.store)

    @classmethod
    def concatenate(cls, tables: Sequence[ClipTable]) -> ClipTable:
        """One table after another, of the same columns and the same store; nothing is copied."""
        if not tables:
            raise ValueError("At least one clip table is needed to concatenate, found none.")
        first = tables[0]
        for place, table in enumerate(tables):
            if table.store != first.store:
                raise ValueError(f"Table {place} has its videos in {table.store}, table 0 in {first.store}.")
            if not same_columns(table._table.schema, first._table.schema):
                raise ValueError(
                    f"Table {place} has the columns {describe(table._table.schema)}, table 0 has "
                    f"{describe(first._table.schema)}; the columns of tables to concatenate must be the same."
                )
        joined = cls(pa.concat_tables([table._table.replace_schema_metadata() for table in tables]), first.store)
        joined._parts = tuple(tables)
        return joined

    @staticmethod
    def type_of(name: str) -> pa.DataType | None:
        """The Arrow type that a column of this name must have; None for a name that is free."""
        return KNOWN.get(name)

    def __len__(self) -> int:
        return self._table.num_rows

    def __repr__(self) -> str:
        return f"ClipTable({len(self)} clips, columns {', '.join(self.columns)}, store {self.store})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:
            return ClipTable.open, (self.path,)
        if self._parts:
            return ClipTable.concatenate, (self._parts,)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._table.schema) as writer:
            writer.write_table(self._table)
        return _from_bytes, (sink.getvalue().to_pybytes(), self.store)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that this table has."""
        return tuple(self._columns)

    def row(self, i: int) -> dict[str, Any]:
        """All columns of clip i as plain Python values."""
        return {name: self.cell(i, name) for name in self.columns}

    def cell(self, i: int, name: str) -> Any:
        """One value as a plain Python value; much cheaper than a whole row."""
        if not 0 <= i < len(self):
            raise IndexError(f"Clip {i} was asked for, the table has clips 0 to {len(self) - 1}.")
        return self._arrow(name)[int(i)].as_py()

    def column(self, name: str) -> Any:
        """A whole column: numbers as a numpy array, texts and lists as a Python list with None where one is missing."""
        column = self._arrow(name)
        if not _is_number(column.type):
            return column.to_pylist()
        return column.to_numpy().astype(self.dtype(name), copy=False)

    def dtype(self, name: str) -> np.dtype:
        """Numpy type of a column of numbers that has a value in every clip; raises for any other column."""
        column = self._arrow(name)
        if not _is_number(column.type):
            raise ValueError(f"Column {name!r} of the clip table must hold one number a clip, found {column.type}.")
        if column.null_count:
            raise ValueError(
                f"Column {name!r} has no value in {column.null_count} of {len(self)} clips; drop those clips with "
                "ClipTable.filter or give them a value."
            )
        # Arrow's own answer would need pandas.
        letter = "f" if pa.types.is_floating(column.type) else "u" if pa.types.is_unsigned_integer(column.type) else "i"
        return np.dtype(f"{letter}{column.type.bit_width // 8}")

    def lengths(self, name: str) -> np.ndarray:
        """How many values each clip has in a column of lists."""
        return pc.fill_null(pc.list_value_length(self._arrow(name)), 0).to_numpy()

    def videos(self) -> list[str]:
        """The different videos of the table, sorted."""
        return sorted(pc.unique(self._arrow("video")).to_pylist())

    def select(self, indices: Sequence[int] | np.ndarray) -> ClipTable:
        """The clips with these row numbers, in this order, as a table in memory."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise ValueError(
                f"Rows {indices.min()} to {indices.max()} were selected, the table has 0 to {len(self) - 1}."
            )
        at_once = max(1, min(TAKEN_ROWS, TAKEN_BYTES * len(self) // max(1, self._table.nbytes)))
        pieces = [indices[first : first + at_once] for first in range(0, max(len(indices), 1), at_once)]
        batches = self._table.to_batches()
        return ClipTable(pa.concat_tables([take(batches, rows) for rows in pieces]), store=self.store)

    def filter(self, mask: Sequence[bool] | np.ndarray) -> ClipTable:
        """The clips where the mask is true."""
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise ValueError(
                f"The mask must hold one bool a clip ({len(self)}), found {mask.dtype} of shape {mask.shape}."
            )
        # Piece by piece, unlike a selection: the texts of millions of clips exceed one Arrow array.
        return ClipTable(self._table.filter(pa.array(mask)), store=self.store)

    def only_videos(self, videos: Iterable[str]) -> ClipTable:
        """The clips of these videos; `table.only_videos(store.videos)` drops what could not be precut."""
        return self.filter(pc.is_in(self._arrow("video"), value_set=pa.array(videos, pa.string())).to_numpy())

    def arrow(self, name: str) -> pa.ChunkedArray:
        """A whole column as Arrow holds it, for questions asked of all clips at once."""
        return self._arrow(name)

    def _arrow(self, name: str) -> pa.ChunkedArray:
        if name not in self._columns:
            raise ValueError(f"The clip table has no column {name!r}; it has {', '.join(self.columns)}.")
        return self._columns[name]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    # Arrow would take a bare string as the list of its letters.
    if pa.types.is_list(KNOWN.get(name, pa.null())) and any(isinstance(value, str) for value in values):
        raise ValueError(f"Column {name!r} must be of type {KNOWN[name]}: found a bare string in place of a list.")
    try:
        return pa.array(values, type=KNOWN.get(name))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as error:
        raise ValueError(f"Column {name!r} must be of type {KNOWN.get(name, 'known to Arrow')}: {error}") from error


def _absolute(store: str | os.PathLike[str]) -> str:
    # An address such as gs://bucket/store is no path of this machine.
    return str(store) if "://" in str(store) else os.path.abspath(store)


def _path_in_file(store: str | os.PathLike[str] | None, folder: str) -> str | None:
    """A folder that holds table and store together can be moved as a whole: the path is then seen from it."""
    if store is None:
        return None
    path = _absolute(store)
    return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


def _stored_path(table: pa.Table, path: str) -> str | None:
    """Path of the store as the table's metadata tells it, seen from where the table's file lies now."""
    metadata = (table.schema.metadata or {}).get(_METADATA)
    if metadata is None:
        raise ValueError(f"{path} is an Arrow file but was not written by ClipTable.save.")
    header = json.loads(metadata)
    if header["version"] != _VERSION:
        raise ValueError(f"{path} has format version {header['version']}, this code reads version {_VERSION}.")
    if header["store"] is None:
        return None
    store: str = header["store"]
    return store if "://" in store else os.path.join(os.path.dirname(path), store)


def _from_bytes(data: bytes, store: str | None) -> ClipTable:
    return ClipTable(pa.ipc.open_stream(data).read_all(), store=store)
