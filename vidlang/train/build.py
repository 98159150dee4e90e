"""From a stage's words to its things: tables, streams, model and dials, each built through the same doors.

Nothing here decides anything; a section of the config names a file or a constructor and gives its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from vidlang.core.config import call, check_keys, load_module
from vidlang.data import pipeline
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import ClipSpec, EvalData
from vidlang.data.tokenizer import Tokenizer
from vidlang.ops.dials import Dials
from vidlang.train.optimizer import make_optimizer
from vidlang.train.recipe import Evaluation, Recipe, Runtime, Stage
from vidlang.train.saved import find_checkpoint
from vidlang.train.step import device_fields


def named(section: Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    """(the section's `name`, its other keys)."""
    options = dict(section)
    if not isinstance(options.get("name"), str):
        raise ValueError(
            f"{what} must say its name, as in dict(name=...); found the keys {', '.join(options) or 'none'}"
        )
    return options.pop("name"), options


def model(stage: Stage) -> nn.Module:
    """The Linen module of a stage."""
    name, options = named(stage.model, "model")
    return call(load_module("models", name).Model, options, what="model")


def dials(stage: Stage) -> Dials:
    """How much of the encoder runs in training."""
    return call(Dials, stage.dials, what="dials")


def objective(stage: Stage) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(loss function, its own settings)."""
    name, options = named(stage.objective, "objective")
    return load_module("objectives", name).loss, options


def table(data: Mapping[str, Any], what: str) -> ClipTable:
    """The clips that a `data` section means."""
    name, options = named(data, what)
    return call(load_module("datasets", name).load, options, what=what)


def clip_spec(stage: Stage, evaluation: Evaluation | None = None) -> ClipSpec:
    """What a clip of this stage looks like; an evaluation takes clips one by one and overrides what it names."""
    what, clip = "clip", stage.clip
    if evaluation is not None:
        what, clip = "clip of an evaluation", {**stage.clip, "pairs": "none", **evaluation.clip}
    for name in ("times", "crop"):
        if not isinstance(section := clip.get(name, {}), Mapping):
            raise ValueError(f"{what}: {name} must be a section of keys, as in dict(...); found {section!r}")
    return call(ClipSpec, clip, what=what)


def tokenizer(stage: Stage, spec: ClipSpec) -> Tokenizer:
    """The stage's tokenizer, at the text length of `spec`; the model must have a row for each of its ids."""
    found = Tokenizer(stage.tokenizer, spec.text_length)
    rows = getattr(model(stage), "vocab", None)
    if rows is not None and found.vocab_size > rows:
        raise ValueError(
            f"the tokenizer {stage.tokenizer} has {found.vocab_size} ids, and the model of stage {stage.name!r} rows "
            f"for {rows}; set its vocab to {found.vocab_size} or more"
        )
    return found


def check(stage: Stage) -> None:
    """Raises now what building the stage would raise later, for all that needs no data and no device."""
    if not stage.tokenizer:
        raise ValueError(f"tokenizer must be the path of a tokenizer.json file; found {stage.tokenizer!r}")
    model(stage)
    dials(stage)
    loss, options = objective(stage)
    check_keys(loss, options, what="objective", extra=("outputs", "batch"))
    check_keys(make_optimizer, stage.optimizer, what="optimizer", extra=("params", "total_steps", "batch_size"))
    clip_spec(stage)
    _check_data(stage.data, "data")
    for evaluation in stage.evals:
        evaluator = load_module("evals", evaluation.name).Evaluator
        check_keys(evaluator, evaluation.options, what="options of an evaluation", extra=("predict", "data"))
        _check_data(evaluation.data, "data of an evaluation")
        clip_spec(stage, evaluation)
    if stage.init_from:
        find_checkpoint(stage.init_from)


def _check_data(data: Mapping[str, Any], what: str) -> None:
    name, options = named(data, what)
    check_keys(load_module("datasets", name).load, options, what=what, extra=())


def train_stream(recipe: Recipe, index: int, clips: ClipTable, *, start_step: int) -> Any:
    """This process's share of the stage's batches, from `start_step` on; close it to free its workers."""
    stage = recipe.stages[index]
    processes = jax.process_count()
    if stage.batch_size % processes:
        raise ValueError(f"batch_size {stage.batch_size} does not divide over {processes} processes")
    spec = clip_spec(stage)
    return pipeline.train_stream(
        clips,
        tokenizer(stage, spec),
        spec,
        seed=recipe.seed_of(index),
        batch_size=stage.batch_size,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=processes,
        workers=recipe.runtime.workers,
    )


def eval_data(stage: Stage, evaluation: Evaluation, runtime: Runtime) -> EvalData:
    """What an evaluator sees: its table, batches and tokenizer."""
    spec = clip_spec(stage, evaluation)
    processes = jax.process_count()
    if evaluation.batch_size % processes:
        raise ValueError(f"its batch_size {evaluation.batch_size} does not divide over {processes} processes")
    clips = table(evaluation.data, "data of an evaluation")
    return EvalData(
        clips,
        tokenizer(stage, spec),
        spec,
        batch_size=evaluation.batch_size,
        process_index=jax.process_index(),
        process_count=processes,
        workers=runtime.eval_workers,
        max_broken_share=runtime.max_broken_share,
    )


def batch_fields(recipe: Recipe, index: int, clips: ClipTable) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and dtypes of what the devices get each step, learnt from two real clips."""
    stage = recipe.stages[index]
    spec = clip_spec(stage)
    stream = pipeline.train_stream(clips, tokenizer(stage, spec), spec, seed=recipe.seed_of(index), batch_size=2)
    with stream:
        batch = device_fields(next(stream))
    return {
        name: jax.ShapeDtypeStruct((stage.batch_size, *array.shape[1:]), array.dtype) for name, array in batch.items()
    }
