"""Fills a fresh state with the parameters that a stage starts from, made to fit, and tells what came from where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

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
    sources: list[tuple[str, Any]] = []
    changed: list[str] = []
    for origin in found:
        name, params, changes = _read(state, origin, folders, stage, fields, mesh)
        sources.append((name, params))
        changed += changes
    params, report = combine(state.params, sources, stage.init_allow)
    words = f"{names_of(sources)}:{_counts(sources, report)}{report}{carry.describe(changed)}"
    return TrainState(state.step, params, state.opt_state), words


def awaited(found: Sequence[Origin], stage: Stage, params: Any) -> frozenset[str]:
    """The parameters, by path, that files of weights give as they are; `params` are the stage's, or their shapes."""
    wanted = {path: tuple(leaf.shape) for path, leaf in tree.flatten_paths(params).items()}
    given = [tree.flatten_paths(origin.shapes(stage.model)) for origin in found if isinstance(origin, Weights)]
    return frozenset(path for flat in given for path, leaf in flat.items() if wanted.get(path) == tuple(leaf.shape))


def combine(target: Any, sources: Sequence[tuple[str, Any]], allowed: Sequence[str]) -> tuple[Any, tree.MergeReport]:
    """(the target with what the sources, each with its name, have of it, a report); what does not fit must be allowed.

    All may be shapes, under `jax.eval_shape`.
    """
    wanted = set(tree.flatten_paths(target))
    owner: dict[str, str] = {}
    whole: dict[str, Any] = {}
    for name, source in sources:
        flat = tree.flatten_paths(source)
        if not wanted & flat.keys():
            has = ", ".join(sorted({path.split("/")[0] for path in flat}))
            raise ValueError(
                f"{name} gives nothing that this stage's model has, for it has {has}; leave it out of init_from, or "
                "name the part of the model that it is"
            )
        for path, leaf in flat.items():
            if path in wanted and path in owner:
                raise ValueError(
                    f"{owner[path]} and {name} both have {path}; start from one of them, or from a stage without it"
                )
            owner.setdefault(path, name)
            whole[path] = leaf
    params, report = tree.merge(target, tree.nest(whole))
    try:
        report.raise_unless(allowed)
    except ValueError as error:
        raise ValueError(
            f"{names_of(sources)} does not fit this stage's model: {error}; such patterns go into the stage's "
            "init_allow"
        ) from None
    return params, report


def names_of(sources: Sequence[tuple[str, Any]]) -> str:
    """How a report calls them."""
    return " and ".join(name for name, _ in sources)


def _counts(sources: Sequence[tuple[str, Any]], report: tree.MergeReport) -> str:
    """How much each of several gave, a line each."""
    if len(sources) < 2:
        return " "
    loaded = set(report.loaded)
    lines = [f"\n  {len(loaded & tree.flatten_paths(source).keys())} from {name}" for name, source in sources]
    return f"{''.join(lines)}\n"


def _read(
    state: TrainState, origin: Origin, folders: Sequence[Path], stage: Stage, fields: Fields, mesh: Mesh
) -> tuple[str, Any, tuple[str, ...]]:
    """(what a source is called, its parameters as this stage's model has them, what was changed)."""
    if isinstance(origin, Weights):
        name, source = str(origin), _placed(origin.load(stage.model), state.params, mesh)
        before = tower_of_weights(origin)
    else:
        stage_folder, step = find_checkpoint(path_of(origin, folders))
        name, source = f"step {step} of {stage_folder}", restore_params(stage_folder, step, mesh, like=state.params)
        before = tower_of(stage_folder, step, stage)
    return name, *carry.carry_arrays(source, state.params, before, carry.tower(stage.model, fields), mesh)


def tower_of_weights(weights: Weights) -> carry.Tower | None:
    """The video encoder that files are of."""
    found = weights.video
    return None if found is None else carry.published(*found)


def tower_of(stage_folder: Path, step: int, stage: Stage) -> carry.Tower | None:
    """The video encoder that a checkpoint is of, for a stage that starts from it."""
    note = read_note(stage_folder, step)
    return carry.tower(note["config"]["stages"][note["stage"]]["model"], fields_of(note, stage.batch_size))


def _placed(params: Any, like: Any, mesh: Mesh) -> Any:
    """What is read, on the devices, laid out as the model's where it has them in the same shape.

    The model's own fresh values go before theirs come, and one parameter is read after the other: beside the state,
    memory holds one of them.
    """
    wanted = tree.flatten_paths(like)

    def put(path: Sequence[Any], leaf: Any) -> jax.Array:
        to = wanted.get(tree.path_name(path))
        if to is None or tuple(to.shape) != tuple(leaf.shape):
            return jax.make_array_from_callback(leaf.shape, replicated(mesh), lambda part: leaf[part])
        to.delete()
        return jax.make_array_from_callback(leaf.shape, to.sharding, lambda part: leaf[part])

    return jax.tree_util.tree_map_with_path(put, params)
