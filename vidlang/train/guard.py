"""What becomes of a step that goes wrong: it is left out or stops the run, and its clips are written down by name.

    stage_folder/batches.jsonl   a line for each: step, why, loss, grad_norm, sources and rows of the tables, clips

The loss of a step is the same number in every process, so all of them decide alike. A run that goes on knows from that
file how many steps in a row went wrong before.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vidlang.core.sharding import to_host
from vidlang.data.broken import describe
from vidlang.data.clips import ClipTable
from vidlang.train.recipe import Guard

BATCHES = "batches.jsonl"
# Fields of a batch that say which clips are in it.
NAMES = ("index_B", "source_B")
# Losses that the median is over, and how few of them say nothing yet.
WINDOW, ENOUGH = 100, 10
WRONG, SPIKE = "no number", "spike"


class Watch:
    """Looks at the loss and the gradient of each step of a stage."""

    def __init__(
        self, guard: Guard, stage: str, folder: Path | None = None, clips: Sequence[ClipTable] = (), *, start: int = 0
    ) -> None:
        """`folder` is the stage's, where batches are written down; without one they are not. `clips`: its tables."""
        self._guard, self._stage, self._folder, self._clips = guard, stage, folder, clips
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        known = {record["step"] for record in read_batches(folder) if record["why"] == WRONG} if folder else set()
        self._in_a_row = next(count for count in itertools.count() if start - 1 - count not in known)

    def look(self, step: int, values: Mapping[str, Any], names: Mapping[str, jax.Array], last_good: int | None) -> None:
        """Takes in what a step gave; `names` are those fields of its batch, on the devices and of all processes.

        FloatingPointError for a number too many that is none; all processes call this with the same values.
        """
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if wrong:
            self._in_a_row += 1
            self._write_down(step, WRONG, values, names)
            self._stop_or_go_on(step, wrong[0], values[wrong[0]], last_good)
            return
        self._in_a_row = 0
        if self._guard.spike and self._is_spike(values["loss"]):
            self._write_down(step, SPIKE, values, names)
        self._losses.append(values["loss"])

    def _is_spike(self, loss: float) -> bool:
        """Of losses below 0 nobody can say what so many times as much is."""
        if len(self._losses) < ENOUGH:
            return False
        return loss > self._guard.spike * statistics.median(self._losses) > 0

    def _stop_or_go_on(self, step: int, name: str, value: float, last_good: int | None) -> None:
        wrong, skip = f"{name} is {value} at step {step} of stage {self._stage!r}", self._guard.skip
        if self._in_a_row <= skip:
            logging.warning("%s: left out, %d of %d in a row", wrong, self._in_a_row, skip)
            return
        kept = "there is no checkpoint yet" if last_good is None else f"the last good one is step {last_good}"
        advice = "Lower optimizer.learning_rate or clip_norm, or lengthen the warmup"
        if step == 0:
            advice = "At the first step the input is to blame: a token id beyond the model's vocabulary?"
        before = f", and so it went in the {skip} steps before, which were left out" if skip else ""
        raise FloatingPointError(f"{wrong}{before}. Nothing was saved after it; {kept}. {advice}")

    def _write_down(self, step: int, why: str, values: Mapping[str, Any], names: Mapping[str, jax.Array]) -> None:
        """Process 0 writes; a step that a restart repeats is written once for each reason."""
        if self._folder is None or "index_B" not in names:
            return
        found = to_host(dict(names))  # of all processes, so all come here
        if jax.process_index():
            return
        if why == SPIKE:
            logging.warning("the loss of step %d of stage %r is %.4g, a spike", step, self._stage, values["loss"])
        if any(known["step"] == step and known["why"] == why for known in read_batches(self._folder)):
            return
        rows = found["index_B"].tolist()
        sources = found["source_B"].tolist() if "source_B" in found else [0] * len(rows)
        clips = [describe(self._clips[source], row) for source, row in zip(sources, rows, strict=True)]
        numbers = {name: _readable(values[name]) for name in ("loss", "grad_norm")}
        record = {"step": step, "why": why, **numbers, "sources": sources, "rows": rows, "clips": clips}
        with (self._folder / BATCHES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_batches(stage_folder: Path) -> list[dict[str, Any]]:
    """What was written down in a stage; a line that a kill cut short is left out."""
    path = stage_folder / BATCHES
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            logging.warning("%s has a line that a kill cut short: %s", path, line[:40])
    return records


def _readable(value: float) -> float | str:
    """JSON has no infinite numbers."""
    return value if math.isfinite(value) else str(value)
