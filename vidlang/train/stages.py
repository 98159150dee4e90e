"""A training is a list of stages: each in its own folder, each from where the one before ended.

    workdir/config.json               the config of the run
    workdir/metrics.json              the last stage's metrics, once it is done
    workdir/0_name/checkpoints/900/   complete checkpoints
    workdir/0_name/metrics.jsonl      every step's scalars and every evaluation
    workdir/0_name/metrics.json       the stage's last metrics; written last, so it marks the stage as finished

Running the same command again goes on where the run stopped: a finished stage is not done again.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from vidlang.core.config import to_dict
from vidlang.train import build
from vidlang.train.checkpoint import all_steps, check_same_result, stage_folders
from vidlang.train.loop import train_stage
from vidlang.train.recipe import Recipe, read_recipe
from vidlang.train.signals import Interrupted, StopRequest

CONFIG, METRICS = "config.json", "metrics.json"


def train(config: Any, workdir: str | Path) -> dict[str, float]:
    """Runs every stage that is not finished yet; returns the metrics of the last one."""
    if not str(workdir):
        raise ValueError("the workdir is empty; name a folder for the run, as in --workdir=runs/first")
    workdir = Path(workdir).absolute()
    recipe, plain = read_recipe(config), to_dict(config)
    for stage in recipe.stages:
        build.check(stage)
    _check_workdir(workdir, recipe, plain)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG, plain)
    with StopRequest() as stop:
        try:
            for index in range(len(recipe.stages)):
                metrics = _run_stage(recipe, index, workdir, plain, stop)
        except Interrupted as interruption:
            _say_goodbye(interruption)
            raise
    if jax.process_index() == 0:
        write_json(workdir / METRICS, metrics)
    return metrics


def _run_stage(
    recipe: Recipe, index: int, workdir: Path, config: Mapping[str, Any], stop: StopRequest
) -> dict[str, float]:
    """Trains stage `index`, unless it is finished; returns its last metrics."""
    folder = workdir / recipe.folder(index)
    if is_finished(folder):
        return read_metrics(folder)
    if signum := stop.agreed():
        raise Interrupted(signum, f"before stage {recipe.stages[index].name!r}")
    init_from = recipe.stages[index].init_from
    if not init_from and index:
        init_from = str(workdir / recipe.folder(index - 1))
    metrics = train_stage(recipe, index, folder, config=config, init_from=init_from, stop=stop)
    if jax.process_index() == 0:
        write_json(folder / METRICS, metrics)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"stage {index} is finished")
    return metrics


def is_finished(folder: Path) -> bool:
    """True for a stage that ended and still has a checkpoint to go on from."""
    return (folder / METRICS).is_file() and bool(all_steps(folder))


def read_metrics(folder: Path) -> dict[str, float]:
    """The last metrics of a finished stage or run."""
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config of a run, as plain values."""
    path = Path(workdir) / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} is not the folder of a run: it has no {CONFIG}. Give the --workdir of a training")
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Written beside and renamed into place, so that nobody ever reads half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _check_workdir(workdir: Path, recipe: Recipe, config: Mapping[str, Any]) -> None:
    """ValueError when the folder holds another run's results, before anything in it is touched."""
    if not workdir.exists():
        return
    expected = {recipe.folder(index): index for index in range(len(recipe.stages))}
    for folder in stage_folders(workdir):
        if folder.name in expected:
            check_same_result(folder, config, expected[folder.name])
        elif all_steps(folder):
            raise ValueError(
                f"{workdir} already holds a stage {folder.name}, and this config has {', '.join(expected)}; give "
                "the config of that run, or a new --workdir"
            )


def _say_goodbye(interruption: Interrupted) -> None:
    if jax.process_index() == 0:
        name = signal.Signals(interruption.signum).name
        sentence = f"stopped by {name} at {interruption.where}; all is saved, the same command goes on from there"
        print(sentence, file=sys.stderr, flush=True)
