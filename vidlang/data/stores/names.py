"""The names of a store's videos, millions of them, without an object for each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Asking for fewer than one in so many names, it is cheaper to search for each than to hash all there are.
FEW = 64


class Names(Sequence[str]):
    """A sequence of different names over an Arrow column, with quick look-up by name.

    A name is found by binary search. Names that do not come sorted are put in order at the first look-up: four bytes a
    name, and about a second for two million.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column
        self._order: np.ndarray | None = None
        self._ready, self._lock = False, threading.Lock()

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return self._column.take(pa.array(range(start, stop, step), pa.int64())).to_pylist()
        if not -len(self) <= place < len(self):
            raise IndexError(f"there is no name {place} among {len(self)}")
        return self._column[int(place)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            yield from chunk.to_pylist()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) >= 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = ", ..." if len(self) > 5 else ""
        return f"Names([{', '.join(repr(name) for name in self[:5])}{more}], {len(self)} in all)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        column = self._column if type is None else self._column.cast(type)
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)

    def find(self, name: str) -> int:
        """The place of a name, -1 where it is not among them."""
        order = self._sorted_order()
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._at(order, middle) < name:
                low = middle + 1
            else:
                high = middle
        found = low < len(self) and self._at(order, low) == name
        return (low if order is None else int(order[low])) if found else -1

    def find_many(self, names: Iterable[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """The place of each name, int64, -1 for those that are not among them."""
        wanted = names if isinstance(names, pa.Array | pa.ChunkedArray) else pa.array(names, pa.string())
        if len(wanted) * FEW < len(self):
            return np.array([self.find(name) for name in wanted.to_pylist()], np.int64)
        places = pc.index_in(wanted.cast(pa.string()), value_set=self._column)
        return np.asarray(pc.fill_null(places, -1), np.int64)

    def _at(self, order: np.ndarray | None, place: int) -> str:
        return self._column[place if order is None else int(order[place])].as_py()

    def _sorted_order(self) -> np.ndarray | None:
        """Places in the order of their names, or None where they come in order."""
        if not self._ready:
            with self._lock:
                if not self._ready:
                    # Arrow compares UTF-8 bytes, Python code points: the same order.
                    column, count = self._column, len(self)
                    ordered = pc.all(pc.less(column.slice(0, max(0, count - 1)), column.slice(1))).as_py()
                    if count > 1 and not ordered:
                        places = pc.sort_indices(column).to_numpy()
                        self._order = places.astype(np.uint32 if count < 1 << 32 else np.uint64)
                    self._ready = True
        return self._order
