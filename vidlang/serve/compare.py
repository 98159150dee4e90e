"""One self-contained page about several runs: what differs in their configs, what they reached, and their curves.

Everything comes from the runs' folders, finished or not; nothing is trained or evaluated, no clip is read.
"""

from __future__ import annotations

import collections
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidlang.core.metrics import read_history
from vidlang.serve.compare_sections import config_html, curves_html, metrics_html, runs_html
from vidlang.serve.report import history_of, page_html, write_page
from vidlang.serve.run_report import read_evals, results_of, state_of
from vidlang.train.evaluate import EVALS
from vidlang.train.goodput import read_goodput
from vidlang.train.recipe import Recipe, read_recipe
from vidlang.train.run_files import is_finished, read_config

PAGE = "comparison.html"
# The columns of the first table, by the scalars of a step that their medians are of.
SPEEDS = {"step_seconds": "steps/s", "clips_per_second": "clips/s", "data_wait": "waits for data", "mfu": "MFU"}


@dataclass(frozen=True)
class Compared:
    """What is known of one run.

    state: how far it is, in words. speeds: of its last stage, by the names of `SPEEDS`, and its goodput. history: its
    records, the steps of a stage counted on from those before it. metrics: the last of each, `chance` those of
    guessing. config: its values by their paths.
    """

    name: str
    state: str
    speeds: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def write_comparison(workdirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the page about these runs to `output`, or else into the folder of the first."""
    if len(workdirs) < 2:
        raise ValueError(f"a comparison is of at least two runs; found {len(workdirs)}")
    folders = [Path(workdir) for workdir in workdirs]
    places = collections.Counter(folder.resolve() for folder in folders)
    if twice := [str(place) for place, count in places.items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice; name each run once")
    runs = [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]
    path = folders[0] / PAGE if output is None else Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, render_comparison(runs))
    return path


def render_comparison(runs: Sequence[Compared]) -> str:
    """The page as text. The same inputs give the same bytes."""
    names = [run.name for run in runs]
    chance = {name: value for run in reversed(runs) for name, value in run.chance.items()}
    sections = [
        runs_html(names, [run.state for run in runs], [run.speeds for run in runs]),
        metrics_html({run.name: run.metrics for run in runs}, chance),
        curves_html({run.name: run.history for run in runs}, chance),
        config_html({run.name: run.config for run in runs}),
    ]
    return page_html(f"{len(runs)} runs compared", ", ".join(names), sections)


def read_run(workdir: Path, name: str) -> Compared:
    """All that a run's folder says of it."""
    config = read_config(workdir)
    recipe = read_recipe(config)
    evaluated, metrics, chance = read_evals(workdir / EVALS), dict[str, float](), dict[str, float]()
    state, speeds = "Not begun.", dict[str, float]()
    for index, stage in enumerate(recipe.stages):
        folder = workdir / recipe.folder(index)
        if not (history := read_history(folder / "metrics.jsonl")):
            continue
        own = {label: found for label, found in evaluated.items() if label.startswith(f"{folder.name}/")}
        later = {label.rpartition("/")[2]: found for label, found in own.items()}
        columns = results_of(history, later)
        chance |= columns.pop("chance", {})
        metrics |= last_metrics(history, columns)
        state = f"{_stage_named(recipe, index)}{state_of(stage, history, finished=is_finished(folder))}"
        speeds = speeds_of(history)
    if (goodput := read_goodput(workdir)).wall:
        speeds |= {"goodput": goodput.share, "restarts": float(goodput.restarts)}
    return Compared(name, state, speeds, history_of(workdir), metrics, chance, flat(config))


def _stage_named(recipe: Recipe, index: int) -> str:
    return f"{recipe.folder(index)}: " if len(recipe.stages) > 1 else ""


def last_metrics(
    history: Sequence[Mapping[str, float]], columns: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The last loss, and of each metric the value of the latest step among `columns`, called "step N"."""
    losses = [record["loss"] for record in history if "loss" in record]
    found = {"loss": losses[-1]} if losses else {}
    steps = {float(name.removeprefix("step ")): name for name in columns if name.startswith("step ")}
    for step in sorted(steps):
        found |= columns[steps[step]]
    return found


def speeds_of(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median over the steps of each speed that was written down; one slow evaluation does not move it."""
    found = {}
    for scalar, name in SPEEDS.items():
        if values := [record[scalar] for record in history if scalar in record]:
            median = statistics.median(values)
            found[name] = 1 / median if scalar == "step_seconds" and median else median
    return found


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The values of a config by their paths, such as stages[0].optimizer.learning_rate."""
    if isinstance(value, Mapping) and value:
        parts = [(f"{path}.{key}" if path else str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple) and value:
        parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
    else:
        return {path: value}
    return {place: found for name, part in parts for place, found in flat(part, name).items()}


def short_names(folders: Sequence[Path]) -> list[str]:
    """As few of each path's last parts as tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = [os.path.join(*each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names
