"""Where claims get their figures: trainings by name, run once for all claims, and what is counted or benchmarked."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlang.cost.flops import CONVENTIONS
from vidlang.cost.settings import video_stack
from vidlang.serve.claims import bench, costs
from vidlang.serve.claims.recipes import TRAININGS, Scale
from vidlang.serve.claims.trainings import Training, results
from vidlang.serve.claims.verdicts import Figure
from vidlang.train.recipe import read_recipe

RECALLS = ("t2v_r1", "v2t_r1")


@dataclass(frozen=True)
class Lab:
    """A folder, a scale, and the seeds 0 to `seeds` - 1."""

    workdir: Path
    scale: Scale
    seeds: int

    def trainings(self, name: str) -> list[Training]:
        """A training of this name for each seed."""
        return [TRAININGS[name](self.scale, seed) for seed in range(self.seeds)]

    def share(self, name: str, metrics: Sequence[str], label: str = "") -> Figure:
        """The mean of these metrics of a training, for each seed."""
        found = [results(training, self.workdir) for training in self.trainings(name)]
        values = tuple(statistics.fmean(each[metric] for metric in metrics) for each in found)
        return Figure(label or name, values)

    def recall(self, name: str, label: str = "", prefixes: Sequence[str] = ("val",)) -> Figure:
        """Recall at 1, the mean of both ways and of these evaluations."""
        return self.share(name, [f"{prefix}/{metric}" for prefix in prefixes for metric in RECALLS], label)

    def operations(self, name: str, label: str = "") -> Figure:
        """Of the video encoder for one clip, as SViTT counts them, at the end of the training."""
        stage = read_recipe(TRAININGS[name](self.scale, 0).config).stages[-1]
        counted = CONVENTIONS["svitt"](video_stack(stage))
        return Figure(label or name, (counted / 1e6,), "MFLOP", counted=True)

    def memory(self, label: str, frames: int, **changes: Any) -> Figure:
        """Of a train step compiled at full size."""
        return Figure(label, (costs.full_size_memory(frames, **changes) / 1e9,), "GB", counted=True)

    def throughput(self) -> dict[str, Figure]:
        """Clips a second of each way to load, a run of the benchmark for each seed."""
        runs = [bench.throughput(self.workdir, self.scale.chunks, repeat) for repeat in range(self.seeds)]
        return {way: Figure(way, tuple(run[way] for run in runs), "clips/s") for way in runs[0]}
