"""Fills a fresh state with the parameters that a stage starts from, made to fit, and tells what came from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidlang.core import tree
from vidlang.core.sharding import Mesh, replicated
from vidlang.train import carry
from vidlang.train.origins import Origin, Weights, path_of
from vidlang.train.recipe import Stage
from vidlang.train.saved import fields_of, find_checkpoint, read_note, restore_params
from vidlang.train.step import Fields, TrainState


def take_params(
    state: TrainState, found: Sequence[Origin], folders: Sequence[Path], stage: Stage, fields: Fields, mesh: Mesh
) -> tuple[TrainState, str]:
    """(the state with these parameters, a report); the step and the moments stay fresh."""
    sources: dict[str, Any] = {}
    changed: list[str] = []
    for origin in found:
        params, name, changes = _read(state, origin, folders, stage, fields, mesh)
        sources[name] = params
        changed += changes
    params, report = combine(state.params, sources, stage.init_allow)
    words = f"{' and '.join(sources)}: {report}{carry.describe(changed)}"
    return TrainState(state.step, params, state.opt_state), words


def combine(target: Any, sources: Mapping[str, Any], allowed: Sequence[str]) -> tuple[Any, tree.MergeReport]:
    """(the target with what the sources have of it, a report); what does not fit must be allowed."""
    wanted = set(tree.flatten_paths(target))
    owner: dict[str, str] = {}
    whole: dict[str, Any] = {}
    for name, source in sources.items():
        flat = tree.flatten_paths(source)
        if sources and not wanted & flat.keys():
            raise ValueError(f"{name} gives nothing that this stage's model has; leave it out of init_from")
        for path, leaf in flat.items():
            if path in wanted and path in owner:
                raise ValueError(
                    f"{owner[path]} and {name} both have {path}; start from one of them, or from a stage without it"
                )
            owner.setdefault(path, name)
            whole[path] = leaf
    params, report = tree.merge(target, _nested(whole))
    try:
        report.raise_unless(allowed)
    except ValueError as error:
        names = " and ".join(sources)
        raise ValueError(
            f"{names} does not fit this stage's model: {error}; such patterns go into the stage's init_allow"
        ) from None
    return params, report


def _read(
    state: TrainState, origin: Origin, folders: Sequence[Path], stage: Stage, fields: Fields, mesh: Mesh
) -> tuple[Any, str, tuple[str, ...]]:
    """(the parameters of one source as this stage's model has them, what it is called, what was changed)."""
    here = carry.tower(stage.model, fields)
    if isinstance(origin, Weights):
        return _placed(origin.load(), state.params, mesh), str(origin), ()
    stage_folder, step = find_checkpoint(path_of(origin, folders))
    source, note = restore_params(stage_folder, step, mesh, like=state.params), read_note(stage_folder, step)
    before = carry.tower(note["config"]["stages"][note["stage"]]["model"], fields_of(note, stage.batch_size))
    source, changes = carry.carry_arrays(source, state.params, before, here, mesh)
    return source, f"step {step} of {stage_folder}", changes


def _placed(params: Any, like: Any, mesh: Mesh) -> Any:
    """Arrays of the host on the devices, laid out as the model's where it has them in the same shape."""
    wanted = tree.flatten_paths(like)

    def put(path: Sequence[Any], leaf: np.ndarray) -> jax.Array:
        to = wanted.get(tree.path_name(path))
        same = to is not None and tuple(to.shape) == tuple(leaf.shape)
        sharding = to.sharding if same else replicated(mesh)  # type: ignore[union-attr]
        return jax.make_array_from_callback(leaf.shape, sharding, lambda part: leaf[part])

    return jax.tree_util.tree_map_with_path(put, params)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        here = found
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = leaf
    return found
