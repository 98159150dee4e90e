"""A finished or running training, looked at again: the model rebuilt from its folder, and its evaluations run.

Everything comes from the run itself: the config, the shapes of a batch and the parameters are in its checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from vidlang.core.metrics import format_number
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.train import build
from vidlang.train.predict import Evaluations, Predict
from vidlang.train.recipe import Stage, read_recipe
from vidlang.train.run_files import read_config, write_json
from vidlang.train.saved import all_steps, fields_of, find_checkpoint, read_note, restore_params
from vidlang.train.step import init_params

EVALS = "evals.json"
EVERY_DEVICE: Mapping[str, int] = {"data": -1}


def restore_model(
    path: str | Path, *, step: int | None = None, mesh: Mapping[str, int] = EVERY_DEVICE
) -> tuple[nn.Module, Any, Stage]:
    """(model, parameters, stage) of a run, a stage folder or one checkpoint; the newest unless `step` is given.

    The parameters lie whole on every device of `mesh`.
    """
    folder, step = choose_checkpoint(path, step)
    note = read_note(folder, step)
    stage = read_recipe(note["config"]).stages[note["stage"]]
    return build.model(stage), restore_params(folder, step, make_mesh(mesh)), stage


def evaluate(
    workdir: str | Path,
    *,
    step: int | None = None,
    untrained: bool = False,
    mesh: Mapping[str, int] = EVERY_DEVICE,
) -> dict[str, float]:
    """Runs the evaluations of the run's last stage on one of its checkpoints; the results also go to evals.json.

    `untrained` takes the parameters as they were before the first step: what chance and architecture alone give. The
    evaluations are those of the run's config.json, so one that was added after the training is run too.
    """
    recipe = read_recipe(read_config(workdir))
    folder, step = choose_checkpoint(workdir, step)
    note = read_note(folder, step)
    stage = recipe.stages[note["stage"]]
    if not stage.evals:
        raise ValueError(f"stage {stage.name!r} of {workdir} has no evals; name some in its config")
    build.check(stage)
    model, devices = build.model(stage), make_mesh(mesh)
    with use_mesh(devices):
        if untrained:
            step = 0
            fields = fields_of(note, stage.batch_size)
            params = init_params(model, fields, devices, recipe.seed_of(note["stage"]))
        else:
            params = restore_params(folder, step, devices)
        evaluations = Evaluations(stage, Predict(model, devices), recipe.runtime, total=max(step, 1))
        metrics = evaluations.run(evaluations.all(), params, step)
    if jax.process_index() == 0:
        _keep(Path(workdir), f"{folder.name}/{'untrained' if untrained else step}", metrics)
    return metrics


def choose_checkpoint(path: str | Path, step: int | None) -> tuple[Path, int]:
    """(stage folder, step) of the checkpoint asked for."""
    folder, newest = find_checkpoint(path)
    if step is None:
        return folder, newest
    known = all_steps(folder)
    if step not in known:
        raise ValueError(f"{folder} has no checkpoint of step {step}; it has: {', '.join(map(str, known))}")
    return folder, step


def table(metrics: Mapping[str, float]) -> str:
    """Metrics as lines for people."""
    width = max(len(name) for name in metrics)
    return "\n".join(f"{name:<{width}}  {format_number(value)}" for name, value in metrics.items())


def _keep(workdir: Path, label: str, metrics: Mapping[str, float]) -> None:
    """Adds one evaluation to those that evals.json already has."""
    path = workdir / EVALS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**known, label: dict(metrics)})
