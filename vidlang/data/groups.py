"""Finds hard negatives: another member of a clip's group, in a few reads of a file that all workers share.

A table of tens of millions of clips is sorted by group once, by the main process, into a file of three arrays beside
the table's own: the different groups, where each begins, and the rows in order of their group. Workers map that file;
a partner is found by binary search, and none of them holds an array of its own.

    TABLE.arrow.groups      header int64 [7], groups int64 [G], first places int64 [G + 1], rows int32 or int64 [R]
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from vidlang.data.clips import ClipTable

_VERSION = 1
# version, rows, groups, rows alone in their group; then what tells the table's file from another of the same name.
_HEADER = 7


class Groups:
    """The groups of a table, mapped from `path`; pickles by that path."""

    def __init__(self, path: str) -> None:
        self.path = path
        _, self.rows, groups, self.alone, *_ = (int(number) for number in _read_header(path))
        numbers = np.memmap(path, np.int64, "r", offset=_HEADER * 8, shape=(2 * groups + 1,))
        self._groups_G, self._first_G = numbers[:groups], numbers[groups:]
        self._order_R = np.memmap(path, _row_type(self.rows), "r", offset=(_HEADER + 2 * groups + 1) * 8)

    def __reduce__(self) -> tuple[Any, ...]:
        return Groups, (self.path,)

    @classmethod
    def of(cls, table: ClipTable, folder: Callable[[], str]) -> Groups:
        """The groups of a table: from the file beside it, which is written where there is none yet.

        A table in memory, or one where nothing can be written, has its file in the folder that `folder` names.
        """
        stamp = _stamp(table)
        beside = None if table.path is None else f"{table.path}.groups"
        if beside is not None and os.path.exists(beside) and _is_of(beside, stamp):
            return cls(beside).checked()
        group_R = table.column("group")
        if beside is not None and os.access(os.path.dirname(beside), os.W_OK):
            _write(beside, group_R, stamp)
            return cls(beside).checked()
        handle, path = tempfile.mkstemp(suffix=".groups", dir=folder())
        os.close(handle)
        _write(path, group_R, stamp)
        return cls(path).checked()

    def checked(self) -> Groups:
        """Itself, unless no row has a partner; says how many have none."""
        if self.alone == self.rows:
            raise ValueError(
                f"clip.pairs='group' needs groups of two clips or more, each of {self.alone} clips is alone in its "
                "group."
            )
        if self.alone:
            logging.warning(
                "%d of %d clips are alone in their group: their partner is drawn from the whole table.",
                self.alone,
                self.rows,
            )
        return self

    def partner(self, row: int, group: int, rng: np.random.Generator) -> int:
        """Another row of the same group, or of the whole table where the row is alone in its group."""
        g = int(np.searchsorted(self._groups_G, group))
        first, last = int(self._first_G[g]), int(self._first_G[g + 1])
        # Rows of a group stand in their own order, so that a row finds its own place among them.
        place = first + int(np.searchsorted(self._order_R[first:last], row))
        if last - first == 1:
            first, last = 0, self.rows
        # One draw among the others: those behind this row move up by one place.
        drawn = first + int(rng.integers(last - first - 1))
        return int(self._order_R[drawn + (drawn >= place)])


def _write(path: str, group_R: np.ndarray, stamp: tuple[int, int, int]) -> None:
    order_R = np.argsort(group_R, kind="stable")
    sorted_R = group_R[order_R]
    first_G = np.flatnonzero(np.concatenate([[True], sorted_R[1:] != sorted_R[:-1]]))
    groups_G, first_G = sorted_R[first_G], np.append(first_G, len(group_R))
    alone = int((np.diff(first_G) == 1).sum())
    # Renamed into place, so that a reader never maps a half-written file.
    # Several machines may write it at once.
    partial = f"{path}.{secrets.token_hex(4)}.partial"
    with open(partial, "wb") as file:
        np.array([_VERSION, len(group_R), len(groups_G), alone, *stamp], np.int64).tofile(file)
        groups_G.astype(np.int64).tofile(file)
        first_G.astype(np.int64).tofile(file)
        order_R.astype(_row_type(len(group_R))).tofile(file)
    os.replace(partial, path)


def _read_header(path: str) -> np.ndarray:
    return np.fromfile(path, np.int64, _HEADER)


def _is_of(path: str, stamp: tuple[int, int, int]) -> bool:
    """Whether the file is whole, of this version, and sorts the table of this stamp."""
    header = _read_header(path)
    if len(header) < _HEADER or header[0] != _VERSION or tuple(header[4:].tolist()) != stamp:
        return False
    rows, groups = int(header[1]), int(header[2])
    return os.path.getsize(path) == (_HEADER + 2 * groups + 1) * 8 + rows * np.dtype(_row_type(rows)).itemsize


def _row_type(rows: int) -> type:
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def _stamp(table: ClipTable) -> tuple[int, int, int]:
    """Tells whether the table's file is the one that was sorted."""
    if table.path is None:
        return len(table), 0, 0
    found = os.stat(table.path)
    return len(table), found.st_size, found.st_mtime_ns
