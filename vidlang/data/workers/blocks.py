"""Batches in shared memory: a worker decodes into a block, the main process looks at the same bytes.

A block is a file in the memory file system, and one holds all arrays of a batch. New memory is expensive, page by page,
so blocks are used again: when the last array that looks into a block is gone, the main process gives the file another
name, and the worker that made it finds it by that name. So a stream holds as many blocks as there are batches under way
at once. All of them go with the stream, but for those that arrays still look into; those of a program that was killed
go with its workers, or when the next program looks (leftovers.py).
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidlang.data.workers.leftovers import Claim

SHARED_MEMORY = "/dev/shm"
# Arrays begin where the widest vector instructions and the accelerator's runtime want them.
_ALIGN = 64
_FREE = "-free"
# Held while a block is made. Of the process: a worker gets several copies of its stream's Blocks.
_making = threading.Lock()


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

    def __init__(self, beginning: str = "") -> None:
        own = os.path.join(shared_folder(), f"vidlang-{os.getpid()}-{secrets.token_hex(4)}")
        self._beginning = beginning or own
        # What this process has mapped of its own making, and of others'.
        self._made: dict[str, mmap.mmap] = {}
        self._taken: dict[str, mmap.mmap] = {}
        self._maker = secrets.token_hex(4)
        self._claim: Claim | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Blocks, (self._beginning,)

    def claim(self) -> None:
        """To be called by the main process before anything is made, and again after `clear`."""
        self._claim = self._claim or Claim(self._beginning)

    def path(self, name: str) -> str:
        """A further file of this stream, which goes with the blocks."""
        return f"{self._beginning}-{name}"

    def make(self, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> tuple[Block, dict[str, np.ndarray]]:
        """A block and its arrays, to be filled by this process; one that is free again, or a new one."""
        size = sum(_span(shape, dtype) for shape, dtype in layout.values())
        with _making:
            for path, memory in self._made.items():
                if len(memory) == size and _rename(path + _FREE, path):
                    break
            else:
                path = self.path(f"{self._maker}-{len(self._made)}")
                memory = self._made[path] = _new(path, size)
        return Block(path, layout), _arrays(memory, layout)

    def take(self, block: Block) -> dict[str, np.ndarray]:
        """The arrays of a block that another process filled; while one of them is in use, so is the block."""
        memory = self._taken.get(block.path)
        if memory is None:
            with open(block.path, "r+b") as file:
                memory = self._taken[block.path] = _mapped(file.fileno(), os.path.getsize(block.path))
        arrays = _arrays(memory, block.layout)
        # All of them are views of one array, which lives as long as any of them.
        whole = next(iter(arrays.values())).base
        weakref.finalize(whole, _rename, block.path, block.path + _FREE).atexit = False
        return arrays

    def drop(self, block: Block) -> None:
        """Frees a block that nobody will take."""
        _rename(block.path, block.path + _FREE)

    def clear(self) -> None:
        """Removes all blocks; the processes that make them must have ended. Arrays that are in use keep their bytes."""
        self._taken.clear()
        beginning = Path(self._beginning)
        for path in beginning.parent.glob(f"{beginning.name}-*"):
            path.unlink(missing_ok=True)
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def end(self) -> None:
        """Removes all blocks, before this process ends: whoever would make another one here waits for that."""
        _making.acquire()
        self.clear()


def _rename(path: str, other: str) -> bool:
    """Whether there was such a file; a stream that was closed has none."""
    try:
        os.rename(path, other)
    except FileNotFoundError:
        return False
    return True


def _new(path: str, size: int) -> mmap.mmap:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        # Memory is taken here: where there is none left this raises, and a later write would kill the process.
        os.posix_fallocate(handle, 0, size)
        return _mapped(handle, size)
    except OSError as error:
        os.unlink(path)
        raise MemoryError(
            f"No room for a batch of {size / 1e6:.1f} MB in {os.path.dirname(path)} ({error}); take fewer workers, a "
            "smaller batch, or a container with a larger --shm-size."
        ) from error
    finally:
        os.close(handle)


def _mapped(handle: int, size: int) -> mmap.mmap:
    # All pages at once: met one by one in the middle of a copy, each would cost an interrupt.
    return mmap.mmap(handle, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def _arrays(memory: mmap.mmap, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, np.ndarray]:
    whole, arrays, offset = np.frombuffer(memory, np.uint8), {}, 0
    for name, (shape, dtype) in layout.items():
        end = offset + math.prod(shape) * dtype.itemsize
        arrays[name] = whole[offset:end].view(dtype).reshape(shape)
        offset += _span(shape, dtype)
    return arrays


def _span(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array and of the gap behind it."""
    return -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN
