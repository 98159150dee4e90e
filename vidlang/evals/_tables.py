"""What protocols ask of tables: columns that must be there, other tables named by a section, results for parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidlang.core.config import call, load_module
from vidlang.data.clips import ClipTable


def need(table: Any, columns: Sequence[str], protocol: str) -> None:
    """Raises unless the table has these columns."""
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        raise ValueError(
            f"{protocol} needs the columns {_and(columns)}; the table lacks {_and(lacking)} and has "
            f"{', '.join(table.columns)}"
        )


def load(section: Mapping[str, Any], what: str) -> ClipTable:
    """The table that a `data` section in an evaluator's options means."""
    name, options = named(section, what)
    found: ClipTable = call(load_module("datasets", name).load, options, what=what)
    return found


def named(section: Any, what: str) -> tuple[str, dict[str, Any]]:
    """(name of the reader, its options)."""
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        raise ValueError(f"{what} must be a section such as {{'name': ..., 'split': ...}}; found {section!r}")
    return section["name"], {key: value for key, value in section.items() if key != "name"}


def parts(table: Any, column: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """For each value of the column, which of the `rows` have it; a column of lists puts a row into several parts.

    A column with one value has no parts: they would say what the whole says.
    """
    values = [value if isinstance(value, list) else [value] for value in list(table.column(column))]
    names = sorted({str(name) for row in rows for name in values[row]})
    if len(names) < 2:
        return {}
    return {name: np.array([name in map(str, values[row]) for row in rows]) for name in names}


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
