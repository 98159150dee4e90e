"""Batches in shared memory: a worker decodes into a block, the main process maps the same bytes.

A block is a file in the memory file system, and one holds all arrays of a batch. The main process unlinks it as soon
as it has mapped it, so its memory goes with the last array that looks into it, however the program ends. What was made
and never taken, as when a worker is killed, is found by its name and removed.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARED_MEMORY = "/dev/shm"
# Arrays begin where the widest vector instructions and the accelerator's runtime want them.
_ALIGN = 64


def shared_folder() -> str:
    """The folder of the memory file system, or one on disk where there is none."""
    return SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else tempfile.gettempdir()


@dataclass(frozen=True)
class Block:
    """Where a batch lies."""

    path: str
    layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]


class Blocks:
    """The blocks of one stream, told from all others by the beginning of their names."""

    def __init__(self) -> None:
        self._beginning = os.path.join(shared_folder(), f"vidlang-{os.getpid()}-{secrets.token_hex(4)}")
        self._made = 0

    def path(self, name: str) -> str:
        """A further file of this stream, which goes with the blocks."""
        return f"{self._beginning}-{name}"

    def make(self, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> tuple[Block, dict[str, np.ndarray]]:
        """A new block and its arrays, to be filled by this process."""
        self._made += 1
        block = Block(self.path(f"{os.getpid()}-{self._made}"), layout)
        size = sum(_span(shape, dtype) for shape, dtype in layout.values())
        handle = os.open(block.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Memory is taken here: where there is none left this raises, and a later write would kill the process.
            os.posix_fallocate(handle, 0, size)
            return block, _arrays(handle, size, layout)
        except OSError as error:
            os.unlink(block.path)
            raise MemoryError(
                f"No room for a batch of {size / 1e6:.1f} MB in {os.path.dirname(block.path)} ({error}); take fewer "
                "workers, a smaller batch, or a container with a larger --shm-size."
            ) from error
        finally:
            os.close(handle)

    def take(self, block: Block) -> dict[str, np.ndarray]:
        """The arrays of a block that another process filled; from here on only they hold its memory."""
        handle = os.open(block.path, os.O_RDWR)
        os.unlink(block.path)
        try:
            return _arrays(handle, os.fstat(handle).st_size, block.layout)
        finally:
            os.close(handle)

    def drop(self, block: Block) -> None:
        """Frees a block that nobody will take."""
        os.unlink(block.path)

    def clear(self) -> None:
        """Removes all blocks that were made and not taken; the processes that make them must have ended."""
        beginning = Path(self._beginning)
        for path in beginning.parent.glob(f"{beginning.name}-*"):
            path.unlink(missing_ok=True)


def _arrays(handle: int, size: int, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, np.ndarray]:
    # All pages at once: met one by one in the middle of a copy, each would cost an interrupt.
    memory = mmap.mmap(handle, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
        offset += _span(shape, dtype)
    return arrays


def _span(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array and of the gap behind it."""
    return -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN
