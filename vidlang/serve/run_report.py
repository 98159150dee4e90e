"""One self-contained page about a run of any number of stages, finished or not.

What its clips cost stage by stage, where its time went, the curves and evaluations of each stage, what the stage's
pruning leaves of a held-out clip, and a sweep of widths where one was made. Everything comes from the run's folder;
only the held-out clips are read from where the config says that they lie. Nothing is trained or evaluated, and a
training that goes on in the folder is not disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from vidlang.core.metrics import read_history
from vidlang.serve.dial_figures import Pruned, pruned_clip, prunes
from vidlang.serve.report import page_html, write_page
from vidlang.serve.report_tables import arrange
from vidlang.serve.run_sections import StageReport, costs_html, stage_html, sweep_html, time_html
from vidlang.serve.stage_costs import stage_cost
from vidlang.serve.sweep import Point, read_points
from vidlang.train import build
from vidlang.train.evaluate import EVALS
from vidlang.train.goodput import Goodput, read_goodput
from vidlang.train.recipe import Recipe, Stage, read_recipe
from vidlang.train.run_files import is_finished, read_config
from vidlang.train.saved import all_steps

REPORT, SWEEP = "report.html", "sweep.json"


def write_run_report(workdir: str | Path, output: str | Path | None = None, *, clip: int = 0) -> Path:
    """Writes the page about a run into its folder, or to `output`; `clip` of the evaluations is the one shown."""
    workdir = Path(workdir)
    recipe = read_recipe(read_config(workdir))
    points = read_points(workdir / SWEEP) if (workdir / SWEEP).is_file() else []
    page = render_run(recipe.name, read_stages(workdir, recipe, clip), points, read_goodput(workdir))
    path = workdir / REPORT if output is None else Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, page)
    return path


def render_run(
    title: str, stages: Sequence[StageReport], points: Sequence[Point] = (), goodput: Goodput | None = None
) -> str:
    """The page as text. The same inputs give the same bytes."""
    begun = sum(bool(stage.history) for stage in stages)
    lead = f"{begun} of {len(stages)} stages begun: {', '.join(stage.name for stage in stages)}."
    costs = costs_html([stage.cost for stage in stages])
    sections = [costs, time_html(goodput or Goodput()), *map(stage_html, stages), sweep_html(points)]
    return page_html(title, lead, [section for section in sections if section])


def read_stages(workdir: Path, recipe: Recipe, clip: int) -> list[StageReport]:
    """All that is known of the stages of a run."""
    evaluated = read_evals(workdir / EVALS)
    return [_read_stage(workdir, recipe, index, evaluated, clip) for index in range(len(recipe.stages))]


def read_evals(path: Path) -> dict[str, dict[str, float]]:
    """What `launch.evaluate` found, by stage and step."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON that launch.evaluate writes: {error}; remove it") from error


def _read_stage(
    workdir: Path, recipe: Recipe, index: int, evaluated: Mapping[str, Mapping[str, float]], clip: int
) -> StageReport:
    stage, folder = recipe.stages[index], workdir / recipe.folder(index)
    history = read_history(folder / "metrics.jsonl")
    later = {
        label.rpartition("/")[2]: found for label, found in evaluated.items() if label.startswith(f"{folder.name}/")
    }
    pruned, no_picture = _pruned(folder, stage, clip)
    return StageReport(
        folder.name,
        state_of(stage, history, finished=folder.is_dir() and is_finished(folder)),
        stage_cost(recipe, index),
        history,
        results_of(history, later),
        pruned,
        no_picture,
    )


def state_of(stage: Stage, history: Sequence[Mapping[str, float]], *, finished: bool) -> str:
    """How far a stage is."""
    if not history:
        return "Not begun."
    step = f"step {max(record['step'] for record in history):,.0f}"
    return f"Finished at {step} ({stage.duration})." if finished else f"At {step}; it lasts {stage.duration}."


def results_of(
    history: Sequence[Mapping[str, float]], later: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Columns of metrics: the last of each that the training measured, and those of `launch.evaluate` by its labels.

    The column of a step holds what was last measured there, so evaluations that come at other steps have other columns,
    the newest first. Where both measured at a step, what was measured later counts. Chances come last.
    """
    last: dict[str, tuple[float, float]] = {}
    for record in history:
        if "loss" not in record:  # an evaluation, no step of the training
            last |= {name: (record["step"], value) for name, value in record.items() if name != "step"}
    columns: dict[str, dict[str, Any]] = {}
    for step in sorted({step for step, _ in last.values()}, reverse=True):
        columns[f"step {step:g}"] = {name: value for name, (at, value) in last.items() if at == step}
    for label, found in later.items():
        name = f"step {label}" if label.isdigit() else label
        columns[name] = {**columns.get(name, {}), **found}
    return arrange(columns)[0]


def _pruned(folder: Path, stage: Stage, clip: int) -> tuple[Pruned | None, str]:
    """(a clip under the stage's dials, why there is none); neither where they do not prune."""
    if not prunes(build.model(stage), build.dials(stage)):
        return None, ""
    if not folder.is_dir() or not all_steps(folder):
        return None, "the stage has no checkpoint yet"
    try:
        return pruned_clip(folder, clip), ""
    except (ValueError, OSError) as error:
        logging.warning("what pruning leaves in stage %s cannot be shown: %s", stage.name, error)
        return None, str(error)
