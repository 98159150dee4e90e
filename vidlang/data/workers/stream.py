"""An iterator over batches that outlives its workers.

Batches are a pure function of the step, so nothing is lost with a worker: when one dies or gives no batch for too long,
all of them are ended and started anew at the first batch that is missing. What a worker was decoding stands in a small
shared table (crew.py); an item that ended or stopped two workers is given up, as a clip that cannot be decoded is.
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from absl import logging

from vidlang.data.fetch import Batch
from vidlang.data.workers.crew import Attempt, Crew, Maker, WorkerLost
from vidlang.data.workers.patience import Patience

# Once may be chance, as when the machine runs out of memory; the same clip twice is not.
_CONVICTED = 2


@dataclass(frozen=True)
class StreamOptions:
    """How a stream runs: none of it but the seed changes what it gives."""

    seed: int
    start_step: int = 0
    workers: int = 0
    prefetch: int = 2
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"The seed of the data must be in 0 to 2**32 - 1, found {self.seed}.")
        if self.start_step < 0:
            raise ValueError(f"The first step must be at least 0, found {self.start_step}.")


class Batches:
    """Batches `first`, `first` + 1, ... (`count` of them), made by one thread or by worker processes; close it.

    Up to `prefetch` batches wait ready. `workers` is their number where it was chosen, `restarts` counts how often they
    had to be started anew.
    """

    def __init__(
        self,
        maker: Maker,
        *,
        first: int,
        workers: int,
        prefetch: int,
        patience: Patience,
        count: int = 2**62,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._maker, self._patience = maker, patience
        self._step, self._end = first, first + count
        self._crew = Crew(workers, prefetch, patience, release)
        self._given_up: dict[Attempt, str] = {}
        self._suspects: collections.Counter[Attempt] = collections.Counter()
        self._failures = 0
        self.workers, self.restarts = workers, 0
        # At the latest when this object or the program ends, for shared memory outlives those who forget it.
        self._finish = weakref.finalize(self, self._crew.close)
        # Work begins now, while the caller still compiles the model.
        self._start()

    def _start(self) -> None:
        self._crew.start(self._maker, self._step, self._end, self._given_up)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if not self._finish.alive:
            raise ValueError("These batches were closed; open a new stream at the step where it should go on.")
        while True:
            try:
                batch = self._crew.next()
            except WorkerLost as lost:
                self._recover(lost)
            except StopIteration:
                raise
            except Exception:
                # Grain has gone past this batch: whoever asked again would get the next in its place.
                self.close()
                raise
            else:
                self._step, self._failures = self._step + 1, 0
                return batch

    def _recover(self, lost: WorkerLost) -> None:
        """Starts new workers where the old ones failed, or raises when that was tried often enough."""
        self._failures += 1
        if self._failures > self._patience.restarts:
            self.close()
            raise RuntimeError(
                f"The data workers were lost {self._failures} times in a row before step {self._step} was made, the "
                f"last time because {lost}. Is there enough memory? workers=0 makes batches in this process and shows "
                "an error of its own."
            ) from lost
        self.restarts += 1
        logging.warning("Starting the data workers anew at step %d: %s.", self._step, lost)
        for item in lost.items:
            self._suspects[item] += 1
            if self._suspects[item] >= _CONVICTED:
                self._given_up[item] = lost.kind
                logging.warning("Item %d (attempt %d) is given up: it ended or stopped two workers.", *item)
        self._start()

    def close(self) -> None:
        """Ends the processes and frees shared memory; a thread ends by itself after the clips of its last batch."""
        self._finish()

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
