"""Checkpoints: saved in the background, restored onto any mesh, and never trusted blindly.

A checkpoint holds the parameters, the rest of the training state, and a note: the config, the fingerprint of the part
of it that decides results, and the shapes of a batch, so that the model can be rebuilt without its data. A checkpoint
that cannot be read is set aside with a warning and the one before it is used; half-written ones are never seen, because
a checkpoint gets its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as ocp_managers

from vidlang.core.config import differing_keys, fingerprint
from vidlang.core.sharding import Mesh, replicated
from vidlang.core.tree import flatten_paths
from vidlang.train.recipe import CheckpointPlan, result_config
from vidlang.train.step import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, stage_folder: Path, plan: CheckpointPlan, note: Mapping[str, Any]) -> None:
        """`note` is what `make_note` gives; it is kept in every checkpoint."""
        self.folder = Path(stage_folder).absolute() / FOLDER
        self._plan, self._note = plan, dict(note)
        self._manager = _open(self.folder, plan)

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving in the background; once per step. `metrics` are those of an evaluation of this very state."""
        if step in self._manager.all_steps():
            return
        items = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            "note": ocp.args.JsonSave(self._note),
        }
        best = self._plan.best
        if best and metrics and best not in metrics:
            raise ValueError(f"checkpoint.best is {best!r}, but the evaluations gave: {', '.join(metrics)}")
        kept = {name: float(value) for name, value in metrics.items()} if best and metrics else None
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=kept, force=True)

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Is this evaluation better than that of every checkpoint kept?"""
        best = self._plan.best
        if not best or best not in metrics:
            return False
        sign = 1 if self._plan.best_mode == "max" else -1
        known = (self._manager.metrics(step) for step in self._manager.all_steps())
        return all(sign * metrics[best] > sign * values[best] for values in known if values)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state that can be read, laid out as `abstract` says; None where there is no checkpoint."""
        failures: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._read(step, abstract)
            except Exception as error:
                # What Orbax and the file system raise on a damaged file has no common class.
                failures.append(f"step {step}: {type(error).__name__}: {str(error)[:300]}")
                logging.warning("checkpoint %s cannot be read (%s)", self.folder / str(step), failures[-1])
                continue
            self._set_aside([found for found in self._manager.all_steps() if found > step])
            return state
        if failures:
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read. Restore one from a backup, or remove the "
                f"folder to start this stage again. {'; '.join(failures)}"
            )
        return None

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the background threads."""
        self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> TrainState:
        rest = {"step": abstract.step, "opt_state": abstract.opt_state}
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract.params), rest=ocp.args.StandardRestore(rest))
        found = self._manager.restore(step, args=args)
        return TrainState(found.rest["step"], found.params, found.rest["opt_state"])

    def _set_aside(self, steps: list[int]) -> None:
        """Moves unreadable checkpoints out of the way, so that training can save those steps again."""
        if not steps:
            return
        aside = self.folder.with_name("unreadable_checkpoints")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step in steps:
                number = sum(1 for _ in aside.glob(f"{step}*"))
                (self.folder / str(step)).rename(aside / (f"{step}.{number}" if number else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set aside unreadable checkpoints")
        logging.warning("moved the unreadable checkpoints of steps %s to %s", steps, aside)
        self._manager.reload()


def make_note(config: Mapping[str, Any], index: int, fields: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """What a checkpoint says about itself: config, stage, fingerprint, and the rows of a batch."""
    return {
        "config": json.loads(json.dumps(config)),
        "stage": index,
        "fingerprint": fingerprint(result_config(config, index)),
        "fields": {name: [list(field.shape[1:]), str(field.dtype)] for name, field in fields.items()},
    }


def fields_of(note: Mapping[str, Any], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch fields that a note remembers."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), np.dtype(dtype))
        for name, (shape, dtype) in note["fields"].items()
    }


def check_same_result(stage_folder: Path, config: Mapping[str, Any], index: int) -> None:
    """ValueError when the checkpoints here come from a config that would have computed something else."""
    steps = all_steps(stage_folder)
    if not steps:
        return
    note = read_note(stage_folder, steps[-1])
    if note["fingerprint"] == fingerprint(result_config(config, index)):
        return
    before, now = (json.loads(json.dumps(result_config(c, index))) for c in (note["config"], config))
    raise ValueError(
        f"{stage_folder} was trained with other settings; different are: {', '.join(differing_keys(before, now))}. "
        "Give the same settings to continue it, or a new --workdir to start afresh; there, a stage's init_from can "
        f"take its parameters from {stage_folder}"
    )


def all_steps(stage_folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a stage, ascending."""
    return sorted(ocp.utils.checkpoint_steps(Path(stage_folder) / FOLDER))


def read_note(stage_folder: Path, step: int) -> dict[str, Any]:
    """The note of one checkpoint."""
    path = Path(stage_folder) / FOLDER / str(step) / "note" / "metadata"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.parent.parent} is no readable checkpoint of a vidlang run: {error}") from error


def restore_params(stage_folder: Path, step: int, mesh: Mesh, like: Any = None) -> Any:
    """The parameters of one checkpoint; leaves that `like` also has, in the same shape, are laid out as there.

    Everything else comes whole onto every device.
    """
    folder = Path(stage_folder).absolute() / FOLDER
    layouts = {} if like is None else flatten_paths(like)

    def describe(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
        wanted = layouts.get(name)
        if wanted is not None and tuple(wanted.shape) == tuple(leaf.shape):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted.sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))

    options = ocp.CheckpointManagerOptions(read_only=True)
    handlers = {"params": ocp.StandardCheckpointHandler()}
    try:
        with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
            metadata = manager.item_metadata(step)["params"].tree
            names = iter(flatten_paths(metadata))
            abstract = jax.tree.map(lambda leaf: describe(next(names), leaf), metadata)
            args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
            return manager.restore(step, args=args)["params"]
    except Exception as error:
        # As in Checkpoints.restore: a damaged file can raise anything.
        raise ValueError(f"the parameters in {folder / str(step)} cannot be read: {error}") from error


def find_checkpoint(path: str | Path) -> tuple[Path, int]:
    """(stage folder, step) that a path means: a run (its last stage), a stage, or one checkpoint; newest step."""
    found = Path(path).absolute()
    if not found.is_dir():
        raise ValueError(f"there is no folder {path}; give a run, a stage folder of it, or one checkpoint")
    if found.name.isdigit() and found.parent.name == FOLDER:
        return found.parent.parent, int(found.name)
    if found.name == FOLDER:
        found = found.parent
    for stage in [found, *reversed(stage_folders(found))]:
        if steps := all_steps(stage):
            return stage, steps[-1]
    raise ValueError(f"there is no complete checkpoint in {path}; has the run saved one yet?")


def stage_folders(workdir: Path) -> list[Path]:
    """The stage folders of a run, in order: 0_name, 1_name, ..."""
    numbered = [path for path in Path(workdir).iterdir() if path.is_dir() and path.name.split("_")[0].isdigit()]
    return sorted((path for path in numbered if "_" in path.name), key=lambda path: int(path.name.split("_")[0]))


@contextlib.contextmanager
def opened(checkpoints: Checkpoints) -> Iterator[Checkpoints]:
    """Closes the checkpoints at the end, whatever happens."""
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _open(folder: Path, plan: CheckpointPlan) -> ocp.CheckpointManager:
    policies: list[Any] = [ocp_managers.LatestN(plan.keep)]
    if plan.best:
        best = ocp_managers.BestN(
            get_metric_fn=lambda metrics: metrics[plan.best],
            reverse=plan.best_mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policies.append(best)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp_managers.AnyPreservationPolicy(policies),
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(folder, options=options, item_names=("params", "rest", "note"))
