"""What lies on disk after a training: runs, their stages, their checkpoints, and the notes that say what made them.

    run/0_name/checkpoints/900/   a complete checkpoint; its items are folders in there

Reading needs no training state: the parameters and the note of a checkpoint are enough to build the model again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from vidlang.core.config import differing_keys, fingerprint
from vidlang.core.sharding import Mesh, replicated, use_mesh
from vidlang.core.tree import flatten_paths, path_name
from vidlang.train.digest import digest
from vidlang.train.recipe import result_config

FOLDER = "checkpoints"
# Items of a checkpoint, folders in its own; the JSON ones are a file "metadata" in there.
NOTE, METRICS = "note", "metrics_of_best"
# Key of the note, beside those of `make_note`, for those who read nothing but the parameters.
PARAMS_DIGEST = "params_digest"


def make_note(
    config: Mapping[str, Any],
    index: int,
    fields: Mapping[str, jax.ShapeDtypeStruct],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint says about itself: config, stage, fingerprint, the rows of a batch, and which data it saw."""
    return {
        "config": json.loads(json.dumps(config)),
        "stage": index,
        "fingerprint": fingerprint(result_config(config, index)),
        "fields": {name: [list(field.shape[1:]), str(field.dtype)] for name, field in fields.items()},
        "data": json.loads(json.dumps(data)),
    }


def fields_of(note: Mapping[str, Any], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch fields that a note remembers."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), np.dtype(dtype))
        for name, (shape, dtype) in note["fields"].items()
    }


def check_same_result(stage_folder: Path, config: Mapping[str, Any], index: int) -> None:
    """ValueError when the checkpoints here come from a config that would have computed something else."""
    step = newest_readable(stage_folder)
    if step is None:
        return
    note = read_note(stage_folder, step)
    # Not the fingerprint in the note: what counts as deciding results may have been another set of keys then.
    if fingerprint(result_config(note["config"], index)) == fingerprint(result_config(config, index)):
        return
    before, now = (json.loads(json.dumps(result_config(c, index))) for c in (note["config"], config))
    raise ValueError(
        f"{stage_folder} was trained with other settings; different are: {', '.join(differing_keys(before, now))}. "
        "Give the same settings to continue it, or a new --workdir to start afresh; there, a stage's init_from can "
        f"take its parameters from {stage_folder}"
    )


def check_same_data(stage_folder: Path, data: Mapping[str, Any]) -> None:
    """ValueError when the checkpoints here have seen other data than this; `data` is what `sources.identity` gives."""
    step = newest_readable(stage_folder)
    if step is None:
        return
    note = read_note(stage_folder, step)
    if "data" not in note:
        logging.warning("%s does not say which data it has seen, so a change of it cannot be noticed", stage_folder)
        return
    before, now = note["data"], json.loads(json.dumps(data))
    if different := differing_keys(before, now):
        changes = (f"{key} was {_value_at(before, key)} and is {_value_at(now, key)}" for key in different)
        raise ValueError(
            f"{stage_folder} was trained on other data: {'; '.join(changes)}. Bring the data back as it was to go on, "
            f"or give a new --workdir; there, a stage's init_from can take the parameters from {stage_folder}"
        )


def _value_at(tree: Any, path: str) -> Any:
    """The value at a path of `differing_keys`, for people; "absent" where there is none."""
    for key in path.replace("[", ".[").split("."):
        try:
            tree = tree[int(key[1:-1])] if key.startswith("[") else tree[key]
        except (KeyError, IndexError):
            return "absent"
    return tree


def all_steps(stage_folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a stage, ascending."""
    return sorted(ocp.utils.checkpoint_steps(Path(stage_folder) / FOLDER))


def read_note(stage_folder: Path, step: int) -> dict[str, Any]:
    """The note of one checkpoint."""
    path = Path(stage_folder) / FOLDER / str(step) / NOTE / "metadata"
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if lacks := {"config", "stage", "fingerprint", "fields"}.difference(note):
            raise ValueError(f"{path} lacks {', '.join(sorted(lacks))}")
        return note
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.parent.parent} is no readable checkpoint of a vidlang run: {error}") from error


def newest_readable(stage_folder: Path) -> int | None:
    """Step of the newest checkpoint whose note can be read; None without checkpoints, ValueError if none can."""
    failures: list[str] = []
    for step in reversed(all_steps(stage_folder)):
        try:
            read_note(stage_folder, step)
        except ValueError as error:
            logging.warning("%s; looking at the checkpoint before", error)
            failures.append(str(error))
            continue
        return step
    if failures:
        raise ValueError(none_readable(Path(stage_folder) / FOLDER, failures))
    return None


def restore_params(stage_folder: Path, step: int, mesh: Mesh, like: Any = None) -> Any:
    """The parameters of one checkpoint; leaves that `like` also has, in the same shape, are laid out as there.

    Everything else comes whole onto every device.
    """
    folder = Path(stage_folder).absolute() / FOLDER / str(step)
    layouts = {} if like is None else flatten_paths(like)

    def describe(path: Sequence[Any], leaf: Any) -> jax.ShapeDtypeStruct:
        wanted = layouts.get(path_name(path))
        if wanted is not None and tuple(wanted.shape) == tuple(leaf.shape):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted.sharding)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))

    abstract = jax.tree_util.tree_map_with_path(describe, params_shapes(stage_folder, step))
    try:
        # Not a CheckpointManager, which warns of every item that it is not asked for.
        params = ocp.StandardCheckpointHandler().restore(folder / "params", args=ocp.args.StandardRestore(abstract))
    except Exception as error:
        # As in Checkpoints.restore: a damaged file can raise anything.
        raise ValueError(f"the parameters in {folder} cannot be read: {error}") from error
    saved = read_note(stage_folder, step).get(PARAMS_DIGEST)
    # Whatever mesh is in use, the parameters are on this one.
    with use_mesh(mesh):
        is_same = saved is None or saved == digest(params)
    # Checkpoints of before say nothing.
    if not is_same:
        raise ValueError(
            f"the parameters in {folder} are not those that were saved: the files have changed since. Take another "
            "checkpoint of the run, or bring this one back from a backup"
        )
    return params


def params_shapes(stage_folder: Path, step: int) -> Any:
    """The parameters of one checkpoint, as shapes."""
    folder = Path(stage_folder).absolute() / FOLDER / str(step)
    try:
        metadata = ocp.StandardCheckpointHandler().metadata(folder / "params").tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)
    except Exception as error:
        # As in restore_params.
        raise ValueError(f"the parameters in {folder} cannot be read: {error}") from error


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
        if (step := newest_readable(stage)) is not None:
            return stage, step
    raise ValueError(f"there is no complete checkpoint in {path}; has the run saved one yet?")


def stage_folders(workdir: Path) -> list[Path]:
    """The stage folders of a run, in order: 0_name, 1_name, ..."""
    numbered = [path for path in Path(workdir).iterdir() if path.is_dir() and path.name.split("_")[0].isdigit()]
    return sorted((path for path in numbered if "_" in path.name), key=lambda path: int(path.name.split("_")[0]))


def none_readable(folder: Path, failures: Sequence[str]) -> str:
    """The sentence for a stage of which nothing can be used."""
    return (
        f"none of the checkpoints in {folder} can be read. Restore one from a backup, or remove the "
        f"folder to start this stage again. {'; '.join(failures)}"
    )
