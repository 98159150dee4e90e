"""What a run says about itself: scalars one step late, throughput, and the end of it when a loss is no number."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from vidlang.core.metrics import Writer
from vidlang.train.recipe import Stage

# Steps that a shown speed is averaged over.
WINDOW = 20


class Meter:
    """Holds the scalars of the step that is still running, and the clock."""

    def __init__(self, writer: Writer, stage: Stage) -> None:
        self.pending: tuple[int, dict[str, Any]] | None = None
        self._writer, self._stage = writer, stage
        self._steps: collections.deque[tuple[float, float]] = collections.deque(maxlen=WINDOW)
        self._waited, self._since = 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is time that the devices may have to wait for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def restart_clock(self) -> None:
        """Evaluations and saves are no part of a step's time."""
        if self.pending is None:
            self._waited, self._since = 0.0, time.monotonic()

    def flush(self, last_good: int | None) -> None:
        """Writes the scalars of the pending step, waiting for it; FloatingPointError when it went wrong."""
        if self.pending is None:
            return
        step, scalars = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        self._check_finite(step, values, last_good)
        now = time.monotonic()
        self._steps.append((now - self._since, self._waited))
        self._waited, self._since = 0.0, now
        seconds, waited = (sum(column) for column in zip(*self._steps, strict=True))
        speed = {
            "clips_per_second": self._stage.batch_size * len(self._steps) / seconds,
            "data_wait": min(1.0, waited / seconds),
        }
        self._writer.write(step, {**values, **speed})
        shown = {"loss": values["loss"], "clips/s": speed["clips_per_second"], "waits for data": speed["data_wait"]}
        self._writer.progress(step + 1, shown)

    def _check_finite(self, step: int, values: dict[str, Any], last_good: int | None) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                kept = "there is no checkpoint yet" if last_good is None else f"the last good one is step {last_good}"
                advice = "Lower optimizer.learning_rate or clip_norm, or lengthen the warmup"
                if step == 0:
                    advice = "At the first step the input is to blame: a token id beyond the model's vocabulary?"
                raise FloatingPointError(
                    f"{name} is {values[name]} at step {step} of stage {self._stage.name!r}. Nothing was saved after "
                    f"it; {kept}. {advice}"
                )
