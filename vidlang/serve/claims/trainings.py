"""Trainings that claims share: each is named by a hash of its config, run once, and gone on with where it was killed.

workdir/runs/0123456789abcdef/    a run of `train`, as `launch.train` would leave it; finished ones are only read
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from vidlang.core.config import fingerprint
from vidlang.train.stages import METRICS, read_metrics, train, write_json

RUNS, SECONDS = "runs", "seconds.json"


@dataclass(frozen=True, eq=False)
class Training:
    """A config of `train` with all that decides its metrics, and the training whose parameters it starts from.

    seed: which of a claim's seeds it is for; the config's own follows from it.
    """

    name: str
    seed: int
    config: Mapping[str, Any]
    start: Training | None = None

    @functools.cached_property
    def key(self) -> str:
        """Sixteen hex digits: the same for equal configs that start alike, whatever they are called."""
        others = {name: value for name, value in self.config.items() if name != "name"}
        return fingerprint({"config": others, "start": self.start.key if self.start else ""})

    def folder(self, workdir: Path) -> Path:
        """Where it is run."""
        return workdir / RUNS / self.key

    def runnable(self, workdir: Path) -> dict[str, Any]:
        """The config for `train`: the first stage knows where its parameters come from."""
        first, *others = self.config["stages"]
        if self.start is not None:
            first = {**first, "init_from": str(self.start.folder(workdir))}
        return {**self.config, "stages": (first, *others)}


def plan(wanted: Iterable[Training]) -> list[Training]:
    """Each training once, those that others start from before them."""
    found: dict[str, Training] = {}
    for training in wanted:
        chain = [training]
        while (start := chain[-1].start) is not None:
            chain.append(start)
        for each in reversed(chain):
            found.setdefault(each.key, each)
    return list(found.values())


def is_done(training: Training, workdir: Path) -> bool:
    """Whether its metrics are there; `train` writes them last."""
    return (training.folder(workdir) / METRICS).is_file()


def results(training: Training, workdir: Path) -> dict[str, float]:
    """The metrics of a finished training."""
    return read_metrics(training.folder(workdir))


def run_missing(wanted: Iterable[Training], workdir: Path, say: Callable[[str], None] = print) -> None:
    """Trains what is not done yet, one after another."""
    missing = [training for training in plan(wanted) if not is_done(training, workdir)]
    for number, training in enumerate(missing, start=1):
        say(f"training {number} of {len(missing)}: {training.name}, seed {training.seed} ({training.key})")
        began = time.monotonic()
        train(training.runnable(workdir), training.folder(workdir))
        # Of this process: a training that was killed and gone on with took longer.
        write_json(training.folder(workdir) / SECONDS, {"seconds": time.monotonic() - began})
        # Compiled programs of dozens of trainings would add up; what is needed again is in the cache on disk.
        jax.clear_caches()
