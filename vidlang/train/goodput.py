"""Where the time of a run goes, over all its restarts: what share of it trained, and what took the rest.

    workdir/goodput.jsonl   a line for each span of time, written by process 0 as it ends

A process that is killed leaves the span that it was in unwritten, at most SPAN seconds of training; that time then
counts as `down`, as does all time between two processes, imports included. Nothing is known of the time before the
first span.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import logging

from vidlang.core.metrics import format_seconds

FILE = "goodput.jsonl"
# Training is written down in spans of so many seconds.
SPAN = 10.0
TRAIN = "train"
# What an account calls the time of steps that were not done again.
TRAINING = "training"
# The process that writes; a pid alone comes back.
RUN = f"{time.time():.0f}-{os.getpid()}"


class Ledger:
    """Divides a stage's time among what is done in it: always one thing, and each moment counts once."""

    def __init__(self, workdir: Path | None, stage: str, what: str = "start") -> None:
        """`stage` is its folder's name. Without a `workdir` nothing is written; every process but one has none."""
        self._stage, self._what = stage, what
        self._steps: dict[str, Any] = {}
        self._file = None
        if workdir is not None:
            path = workdir / FILE
            cut = path.is_file() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("a", encoding="utf-8")
            self._file.write("\n" if cut else "")  # a kill came in the middle of a line
        self._began, self._clock = time.time(), time.monotonic()

    def turn_to(self, what: str) -> None:
        """From here on the time is spent on `what`."""
        now = time.monotonic()
        span = {"run": RUN, "stage": self._stage, "what": self._what, "began": round(self._began, 3)}
        if self._file is not None:
            self._file.write(json.dumps({**span, "seconds": round(now - self._clock, 4), **self._steps}) + "\n")
            self._file.flush()
        self._what, self._steps = what, {}
        self._began, self._clock = time.time(), now

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """In here the time is spent on `what`, afterwards again on training."""
        self.turn_to(what)
        yield
        self.turn_to(TRAIN)

    def step(self, step: int, waited: float, skipped: bool) -> None:
        """A step of the training is done, for which the devices waited so many seconds."""
        known = self._steps or {"first": step, "waited": 0.0, "skipped": 0}
        counts = {"waited": round(known["waited"] + waited, 4), "skipped": known["skipped"] + int(skipped)}
        self._steps = {"first": known["first"], "last": step + 1, **counts}
        if time.monotonic() - self._clock > SPAN:
            self.turn_to(TRAIN)

    def close(self) -> None:
        """Writes the last span."""
        self.turn_to("")
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass
class Goodput:
    """Seconds of a run by what they went to, `training` among them: those steps alone that were not done again."""

    wall: float = 0.0
    seconds: collections.defaultdict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    restarts: int = 0
    repeated: int = 0
    skipped: int = 0

    @property
    def share(self) -> float:
        """Of the wall time, what trained."""
        return self.seconds.get(TRAINING, 0.0) / self.wall if self.wall else 0.0

    def __str__(self) -> str:
        causes = ", ".join(f"{what} {took / self.wall:.1%}" for what, took in self.lost())
        return f"goodput {self.share:.1%} of {format_seconds(self.wall)}; " + "; ".join(
            filter(None, [f"the rest: {causes}" if causes else "", ", ".join(self.counts())])
        )

    def lost(self) -> list[tuple[str, float]]:
        """(what, its seconds) of all that did not train, the most first; what nobody would notice is left out."""
        found = [(what, took) for what, took in self.seconds.items() if what != TRAINING]
        return sorted((one for one in found if one[1] >= 0.0005 * self.wall), key=lambda one: one[1], reverse=True)

    def counts(self) -> list[str]:
        """What went wrong how often, in words."""
        counts = {"restarts": self.restarts, "steps done again": self.repeated, "left out": self.skipped}
        return [f"{number} {what}" for what, number in counts.items() if number]


def read_goodput(workdir: Path) -> Goodput:
    """What the file of a run says, up to its last span."""
    path = workdir / FILE
    spans = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            spans += [json.loads(line)] if line else []
        except ValueError:
            logging.warning("%s has a line that a kill cut short: %s", path, line[:40])
    return account(spans)


def account(spans: Iterable[Mapping[str, Any]]) -> Goodput:
    """Adds spans up, in the order in which they were written."""
    found = Goodput()
    trained: dict[str, list[_Trained]] = collections.defaultdict(list)
    before: Mapping[str, Any] | None = None
    first = None
    for span in spans:
        first = span["began"] if first is None else first
        end = span["began"] + span["seconds"]
        if before is not None:
            again = before["run"] != span["run"]
            found.restarts += again
            found.seconds["down" if again else "other"] += max(0.0, span["began"] - before["began"] - before["seconds"])
        if "first" in span:
            _add_training(found, trained[span["stage"]], span)
        else:
            found.seconds["other" if span["what"] == TRAIN else span["what"]] += span["seconds"]
        found.wall = max(found.wall, end - first)
        before = span
    return found


@dataclass
class _Trained:
    """Steps from `first` to `last`, without it, and the seconds that they took."""

    first: int
    last: int
    seconds: float


def _add_training(found: Goodput, trained: list[_Trained], span: Mapping[str, Any]) -> None:
    """A span of steps; what was done from its first step on before was in vain."""
    for other in trained:
        lost = other.last - max(other.first, span["first"])
        if lost > 0:
            took = other.seconds * lost / (other.last - other.first)
            other.last, other.seconds = other.last - lost, other.seconds - took
            found.repeated += lost
            found.seconds["done again"] += took
            found.seconds[TRAINING] -= took
    waited = min(span["waited"], span["seconds"])
    busy, steps = span["seconds"] - waited, span["last"] - span["first"]
    left_out = busy * span["skipped"] / steps
    found.skipped += span["skipped"]
    for what, took in (("data wait", waited), ("left out", left_out), (TRAINING, busy - left_out)):
        found.seconds[what] += took
    trained.append(_Trained(span["first"], span["last"], busy - left_out))
