"""Batches on their way to the devices: the next one is drawn and sent while the step before it still runs.

What is drawn ahead is no part of the training yet: the stream is a function of (seed, step), so a run that stops here
draws it again. Whatever goes wrong with a batch is told when its step has come, and costs none of the steps before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax
import numpy as np

from vidlang.core.sharding import Mesh, put_batch
from vidlang.train.step import device_fields

# Names, row shapes and dtypes of a batch: what a step is compiled for.
Shape = tuple[tuple[str, tuple[int, ...], str], ...]


@dataclass
class Batch:
    """One batch on the devices, its shape, and what its clips add to the counts of broken ones."""

    arrays: dict[str, jax.Array]
    shape: Shape
    counts: dict[str, float]


class Feed:
    """Takes host batches from a stream, counts what is broken, and puts them on the devices, one ahead."""

    def __init__(
        self, stream: Iterator[Any], mesh: Mesh, count: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    ) -> None:
        """`count` looks at each host batch and returns the counts so far; it may raise."""
        self._stream, self._mesh, self._count = stream, mesh, count
        self._ahead: Batch | Exception | None = None

    def draw_ahead(self) -> None:
        """Draws and sends a batch, unless one waits; what goes wrong is kept for `take`."""
        if self._ahead is not None:
            return
        try:
            self._ahead = self._draw()
        except Exception as error:
            self._ahead = error

    def take(self) -> Batch:
        """The next batch: the one that waits, or drawn now."""
        self.draw_ahead()
        found, self._ahead = self._ahead, None
        if isinstance(found, Exception):
            raise found
        assert found is not None
        return found

    def close(self) -> None:
        """Forgets the batch that waits. Before the stream is closed: its memory may be what is being sent."""
        found, self._ahead = self._ahead, None
        if isinstance(found, Batch):
            jax.block_until_ready(found.arrays)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> Batch:
        host_batch = next(self._stream)
        counts = self._count(host_batch)
        arrays = device_fields(host_batch)
        # On CPU devices this makes no copy: the arrays keep the host's memory, which nobody writes to again.
        return Batch(put_batch(arrays, self._mesh), shape_of(arrays), counts)


def shape_of(fields: Mapping[str, Any]) -> Shape:
    """What tells batches of one size apart: everything but the number of rows."""
    return tuple(sorted((name, tuple(field.shape[1:]), str(field.dtype)) for name, field in fields.items()))
