"""The worker processes of a stream: how they are started, watched and ended, and what they do.

Grain runs them. Of one that died it tells by an exception, a second after its last batch was taken; of one that hangs
it tells nothing, so a thread here watches the clock and kills the workers, which is then told. Batches come through
shared memory (blocks.py); Grain carries only their names.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grain
import numpy as np
from absl import flags, logging

from vidlang.data.fetch import Batch, Layout
from vidlang.data.workers.blocks import Block, Blocks
from vidlang.data.workers.count import each
from vidlang.data.workers.patience import Patience
from vidlang.data.workers.processes import end_with_parent, without_main

_CLOSING_SECONDS = 5.0
# New workers import Python packages first, from a disk that may be slow: so long this is not counted as a stall.
_BEGINNING_SECONDS = 300.0
_NAMED_BY_GRAIN = "grain-process-prefetch"

# (item of the stream, attempt at it)
Attempt = tuple[int, int]
ItemWatch = Callable[[int, int], str | None]


class Maker(Protocol):
    """What makes batches: a pure function of the step, picklable."""

    def layout(self, step: int) -> Layout:
        """Shapes and types of the arrays of batch `step`."""

    def fill(self, step: int, batch: Batch, watch: ItemWatch) -> None:
        """Writes batch `step`; asks watch(item, attempt) before it decodes."""


class WorkerLost(Exception):
    """A worker died or hangs; `items` are those it was at, `kind` what their clips are then counted as."""

    def __init__(self, message: str, items: list[Attempt], kind: str) -> None:
        super().__init__(message)
        self.items, self.kind = items, kind


# All crews of this process, to tell one's workers from another's.
_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


class Crew:
    """The workers of a stream, and Grain's iterator over what they make."""

    def __init__(self, workers: int, prefetch: int, patience: Patience, release: Callable[[], None]) -> None:
        self._workers, self._prefetch, self._release = workers, prefetch, release
        self._blocks = Blocks()
        self._marks = Marks(self._blocks.path("marks"), workers)
        self._alarm = _Alarm(patience.stall_timeout, self._have_begun, self._kill)
        self._iterator: grain.DatasetIterator | None = None
        self._taken = 0
        _crews.add(self)

    def start(self, maker: Maker, first: int, end: int, given_up: Mapping[Attempt, str]) -> None:
        """Opens the stream at step `first`."""
        steps = grain.MapDataset.source(range(first, end))
        if self._workers:
            # Grain hands its flags to the processes it starts, and flags cannot be read before they were parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            self._blocks.claim()
            self._marks.make()
            made = steps.map(_InWorker(maker, self._blocks, self._marks, dict(given_up)))
            options = grain.MultiprocessingOptions(
                self._workers, per_worker_buffer_size=each(self._prefetch, self._workers)
            )
            dataset = made.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(
                options, worker_init_fn=functools.partial(_begin_worker, self._blocks, self._marks)
            )
        else:
            threads = grain.ReadOptions(num_threads=min(1, self._prefetch), prefetch_buffer_size=self._prefetch)
            dataset = steps.map(_InThread(maker)).to_iter_dataset(threads)
        self._taken, self._iterator = 0, iter(dataset)
        with without_main(maker):
            # Grain makes what start_prefetch starts only when it is asked for the state.
            self._iterator.get_state()
            self._iterator.start_prefetch()

    def next(self) -> Batch:
        """The next batch; raises WorkerLost, after which `start` may be called again."""
        assert self._iterator is not None, "started before the first batch is taken"
        with self._alarm:
            try:
                made = next(self._iterator)
            except RuntimeError as error:
                if not self._workers:
                    raise
                lost = self._lost(error)
                self._end_workers()
                raise lost from error
        self._taken += 1
        if isinstance(made, _Failed):
            raise made.error
        return self._blocks.take(made) if isinstance(made, Block) else made

    def _lost(self, error: RuntimeError) -> WorkerLost:
        if self._alarm.rang:
            # Workers take turns, so the one that was waited for is known.
            at, kind = [self._taken % self._workers], "timeout"
            message = f"no batch came for {self._alarm.seconds:g} s"
        else:
            alive = {child.pid for child in multiprocessing.active_children()}
            at, kind = [k for k, pid in enumerate(self._marks.pids()) if pid not in alive], "damaged"
            message = str(error).split(". ")[0]
        return WorkerLost(message, [item for k in at if (item := self._marks.item(k)) is not None], kind)

    def _have_begun(self) -> bool:
        return -1 not in self._marks.pids()

    def _kill(self) -> None:
        """Ends the workers at once, whatever they do, even if they are stopped or have not begun."""
        others = {pid for crew in _crews if crew is not self for pid in crew._marks.pids()}
        for child in multiprocessing.active_children():
            if child.name.startswith(_NAMED_BY_GRAIN) and child.pid not in others:
                child.kill()

    def _end_workers(self) -> None:
        """Ends what is left of a crew that lost a member."""
        self._kill()
        iterator, self._iterator = self._iterator, None
        # A worker may have been killed with a lock in its hands that Grain waits for.
        closing = threading.Thread(target=iterator.close, daemon=True)  # type: ignore[union-attr]
        closing.start()
        closing.join(_CLOSING_SECONDS)
        self._blocks.clear()

    def close(self) -> None:
        """Ends the workers and frees all they hold."""
        self._alarm.stop()
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
        self._blocks.clear()
        self._release()


class _Alarm:
    """Used as `with alarm:` around a wait; calls `ring` in a thread when the wait takes too long."""

    def __init__(self, seconds: float, begun: Callable[[], bool], ring: Callable[[], None]) -> None:
        self.seconds, self.rang = seconds, False
        self._begun, self._ring, self._stopped = begun, ring, threading.Event()
        self._since: float | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self.rang, self._since = False, time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._since = None

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _watch(self) -> None:
        beginning = 0.0
        while not self._stopped.wait(min(1.0, self.seconds / 4)):
            since, now = self._since, time.monotonic()
            if since is not None and not self._begun() and now - since < _BEGINNING_SECONDS:
                beginning = now
            if since is not None and now - max(since, beginning) > self.seconds:
                logging.warning("No batch came for %g s.", self.seconds)
                self.rang, self._since = True, None
                self._ring()


class Marks:
    """What each worker is at, in a file that all of them map: its process, and the item and attempt it decodes."""

    _IDLE = -1

    def __init__(self, path: str, workers: int) -> None:
        self.path, self.workers = path, workers
        self._mapped: np.memmap | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return Marks, (self.path, self.workers)

    def make(self) -> None:
        """Writes the file, with no worker at anything."""
        np.full((self.workers, 3), self._IDLE, np.int64).tofile(self.path)
        # Mapped now, for the file may be removed while the clock is watched.
        self._mapped = np.memmap(self.path, np.int64, "r+", shape=(self.workers, 3))

    def pids(self) -> list[int]:
        """The workers' processes; -1 where one has not begun."""
        return self._table()[:, 0].tolist() if self.workers else []

    def item(self, worker: int) -> Attempt | None:
        """(item, attempt) that a worker decodes, if it does."""
        _, item, attempt = self._table()[worker].tolist()
        return None if item == self._IDLE else (item, attempt)

    def begin(self, worker: int) -> None:
        """To be called in the worker."""
        self._table()[worker, 0] = os.getpid()

    def at(self, worker: int, item: int = _IDLE, attempt: int = _IDLE) -> None:
        """Says what a worker begins to decode; nothing by default."""
        self._table()[worker, 1:] = item, attempt

    def _table(self) -> np.ndarray:
        if self._mapped is None:
            self._mapped = np.memmap(self.path, np.int64, "r+", shape=(self.workers, 3))
        return self._mapped


class _InThread:
    """Makes a batch in this process."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker

    def __call__(self, step: int) -> Batch:
        batch = {name: np.empty(shape, dtype) for name, (shape, dtype) in self._maker.layout(step).items()}
        self._maker.fill(step, batch, lambda item, attempt: None)
        return batch


@dataclass(frozen=True)
class _Failed:
    """An error that is not Grain's: carried as a value, so that it is told from the loss of a worker."""

    error: Exception


# Which worker this process is.
_worker = -1


def _begin_worker(blocks: Blocks, marks: Marks, index: int, count: int) -> None:
    global _worker
    _worker = index
    # A main process that is killed frees nothing.
    end_with_parent(blocks.end)
    marks.begin(index)


class _InWorker:
    """Makes a batch in a worker: in shared memory, saying what it is at, and passing over what was given up."""

    def __init__(self, maker: Maker, blocks: Blocks, marks: Marks, given_up: dict[Attempt, str]) -> None:
        self._maker, self._blocks, self._marks, self._given_up = maker, blocks, marks, given_up

    def __call__(self, step: int) -> Block | _Failed:
        try:
            block, batch = self._blocks.make(self._maker.layout(step))
            try:
                self._maker.fill(step, batch, self._watch)
            except Exception:
                self._blocks.drop(block)
                raise
            return block
        except Exception as error:  # of any class: it is raised again where the batch is taken
            error.add_note("In a data worker:\n" + "".join(traceback.format_tb(error.__traceback__)))
            return _Failed(_portable(error))
        finally:
            self._marks.at(_worker)

    def _watch(self, item: int, attempt: int) -> str | None:
        self._marks.at(_worker, item, attempt)
        return self._given_up.get((item, attempt))


def _portable(error: Exception) -> Exception:
    """The error, or one with its words if it does not survive being sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error class may break in any way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
