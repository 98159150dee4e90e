"""What a run says about itself: scalars one step late, throughput, and what went wrong, which a watch looks at.

Drawing a batch costs nothing while the devices are busy with the step before. So the wait for data is counted from the
moment when that step was done, which a thread of its own takes down.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax

from vidlang.core.metrics import Writer
from vidlang.train.goodput import Ledger
from vidlang.train.guard import NAMES, Watch
from vidlang.train.recipe import Stage

# Steps that a shown speed is averaged over.
WINDOW = 20


@dataclass
class Running:
    """A step that was sent to the devices: its results to be, the names of its clips, when the next batch was drawn."""

    step: int
    scalars: dict[str, Any]
    done: Future[float]
    drawn: tuple[float, float] | None = None
    names: Mapping[str, jax.Array] = field(default_factory=dict)
    ideal: float | None = None  # seconds at the devices' peak

    def waited(self) -> float:
        """Seconds for which this step was done and the next batch was not; waits for the step."""
        if self.drawn is None:
            return 0.0
        began, ended = self.drawn
        return max(0.0, ended - max(began, self.done.result()))


class Meter:
    """Holds the step whose scalars are not written yet, and the clock."""

    def __init__(self, writer: Writer, stage: Stage, watch: Watch | None = None, ledger: Ledger | None = None) -> None:
        self.pending: Running | None = None
        self._writer, self._stage = writer, stage
        self._watch = watch or Watch(stage.guard, stage.name)
        self._ledger = ledger or Ledger(None, stage.name)
        self._steps: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=WINDOW)
        self._waited, self._since = 0.0, time.monotonic()
        self._clock = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-clock")

    def close(self) -> None:
        """Ends the thread that takes down when steps are done."""
        self._clock.shutdown(wait=False)

    def started(
        self, step: int, scalars: Mapping[str, Any], arrays: Mapping[str, jax.Array], ideal: float | None = None
    ) -> Running:
        """A step that the devices were just given; `scalars` has its loss, `arrays` is its batch."""
        names = {name: arrays[name] for name in NAMES if name in arrays}
        done = self._clock.submit(_when_ready, scalars["loss"])
        return Running(step, dict(scalars), done, names=names, ideal=ideal)

    @contextlib.contextmanager
    def waiting(self, behind: Running | None = None) -> Iterator[None]:
        """Time in here is spent on data: the devices wait for it, but for as long as they run the step `behind`."""
        began = time.monotonic()
        yield
        if behind is None:
            self._waited += time.monotonic() - began
        else:
            behind.drawn = (began, time.monotonic())

    def restart_clock(self) -> None:
        """Evaluations and saves are no part of a step's time."""
        if self.pending is None:
            self._waited, self._since = 0.0, time.monotonic()

    def flush(self, last_good: int | None) -> None:
        """Writes the scalars of the pending step, waiting for it; FloatingPointError when it went wrong."""
        if self.pending is None:
            return
        step, found = self.pending.step, self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(found.scalars).items()}
        self._watch.look(step, values, found.names, last_good)
        now, waited = time.monotonic(), self._waited + found.waited()
        self._steps.append((now - self._since, waited, found.ideal or 0.0))
        self._waited, self._since = 0.0, now
        self._ledger.step(step, waited, bool(values.get("skipped")))
        speed = self._speed()
        self._writer.write(step, {**values, **speed})
        shown = {"loss": values["loss"], "clips/s": speed["clips_per_second"], "waits for data": speed["data_wait"]}
        self._writer.progress(step + 1, shown)

    def _speed(self) -> dict[str, float]:
        """Means over the last steps, and the most memory that a device of this process has used, where it says so."""
        seconds, waited, ideal = (sum(column) for column in zip(*self._steps, strict=True))
        known = {"mfu": ideal / seconds} if ideal else {}
        used = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
        return {
            "clips_per_second": self._stage.batch_size * len(self._steps) / seconds,
            "step_seconds": seconds / len(self._steps),
            "data_wait": min(1.0, waited / seconds),
            **known,
            **({"device_memory": float(max(used))} if used else {}),
        }


def _when_ready(array: jax.Array) -> float:
    array.block_until_ready()
    return time.monotonic()
