"""Temporary files of a stream: what workers map instead of being sent.

A table that was never saved would go to every worker by value. It is written to a file once, and they all map it; so
are its groups. Both go when the stream is closed, or after a program was killed when the next one looks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

from vidlang.data.clips import ClipTable
from vidlang.data.groups import Groups
from vidlang.data.workers.leftovers import Claim


class Spill:
    """A folder that is made when the first file needs it."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._claim: Claim | None = None
        self._tables: dict[int, ClipTable] = {}

    def table(self, table: ClipTable) -> ClipTable:
        """The same table, mapped from a file; each is written once."""
        if table.path is not None:
            return table
        if id(table) not in self._tables:
            self._tables[id(table)] = table.save(Path(self._path()) / f"{len(self._tables)}.arrow")
        return self._tables[id(table)]

    def groups(self, table: ClipTable) -> Groups:
        """The table's groups, beside its file where that can be."""
        return Groups.of(table, self._path)

    def _path(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="vidlang-")
            self._claim = Claim(self._folder.name)
        return self._folder.name

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        if self._claim is not None:
            self._claim.release()
