"""From a stage's words to its things: tables, streams, model and dials, each built through the same doors.

Nothing here decides anything; a section of the config names a file or a constructor and gives its arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from vidlang.core.config import call, check_keys, load_module
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import ClipSpec, EvalData
from vidlang.data.plan import FRAMES
from vidlang.data.tokenizer import Tokenizer
from vidlang.ops.augment import Augmentation, Blur, Mix
from vidlang.ops.colours import Jitter
from vidlang.ops.dials import Dials
from vidlang.ops.erasing import Erase
from vidlang.ops.rand_augment import RandAugment
from vidlang.train.micro import Micro
from vidlang.train.optimizer import Optimizer, make_optimizer
from vidlang.train.recipe import Evaluation, Recipe, Runtime, Stage
from vidlang.train.step import make_train_step


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


def eval_dials(stage: Stage, evaluation: Evaluation) -> Dials:
    """The dials of an evaluation."""
    return inference_dials(stage, evaluation.dials, f"dials of {evaluation.label}")


def inference_dials(stage: Stage, section: Mapping[str, Any], what: str = "dials") -> Dials:
    """A stage's dials without what only training does, and in their place those that the section names."""
    own = call(Dials, section, what=what)
    return dataclasses.replace(dials(stage).evaluation(), **{name: getattr(own, name) for name in section})


def objective(stage: Stage) -> tuple[Callable[..., Any], dict[str, Any]]:
    """(loss function, its own settings)."""
    name, options = named(stage.objective, "objective")
    return load_module("objectives", name).loss, options


def train_step(recipe: Recipe, index: int, model: nn.Module, optimizer: Optimizer) -> Callable[..., Any]:
    """The step of the stage with this number, not yet compiled."""
    stage = recipe.stages[index]
    loss, options = objective(stage)
    return make_train_step(
        model,
        optimizer,
        loss,
        options,
        dials=dials(stage),
        seed=recipe.seed_of(index),
        augmentation=augmentation(stage),
        micro=micro(stage),
        skips=stage.guard.skip > 0,
    )


def micro(stage: Stage) -> Micro:
    """In which parts a step takes its batch."""
    return call(Micro, stage.micro, what="micro")


def table(data: Mapping[str, Any], what: str) -> ClipTable:
    """The clips that a `data` section means."""
    name, options = named(data, what)
    return call(load_module("datasets", name).load, options, what=what)


def clip_spec(clip: Mapping[str, Any], what: str = "clip") -> ClipSpec:
    """What a clip looks like, from a `clip` section."""
    missing = [name for name in FRAMES if name not in clip]
    if missing and clip.get("features") is None and clip.get("frames") != 0:
        raise ValueError(
            f"{what} lacks {', '.join(map(repr, missing))}, which say which frames; or give 'features', or frames=0 "
            "for texts alone"
        )
    for name in ("times", "crop"):
        if not isinstance(section := clip.get(name, {}), Mapping):
            raise ValueError(f"{what}: {name} must be a section of keys, as in dict(...); found {section!r}")
    return call(ClipSpec, clip, what=what)


def eval_spec(stage: Stage, evaluation: Evaluation) -> ClipSpec:
    """What a clip of an evaluation looks like: it takes clips one by one, and overrides what it names."""
    return clip_spec({**stage.clip, "pairs": "none", **evaluation.clip}, "clip of an evaluation")


def augmentation(stage: Stage) -> Augmentation:
    """How the clips of a step are changed at random."""
    options = dict(stage.augment)
    kinds = {"rand": RandAugment, "jitter": Jitter, "blur": Blur, "erase": Erase, "mixup": Mix, "cutmix": Mix}
    for name, kind in kinds.items():
        if name in options:
            options[name] = call(kind, options[name], what=f"augment.{name}")
    return call(Augmentation, options, what="augment")


def tokenizer(stage: Stage, spec: ClipSpec) -> Tokenizer | None:
    """The stage's tokenizer, at the text length of `spec`; the model must have a row for each of its ids.

    A stage whose tokenizer is "" has none, for its clips have no texts.
    """
    if not stage.tokenizer:
        return None
    options = tokenizer_options(stage)
    found: Tokenizer = call(Tokenizer, options, what="tokenizer", length=spec.text_length)
    rows = getattr(model(stage), "vocab", None)
    if rows is not None and found.vocab_size > rows:
        raise ValueError(
            f"the tokenizer {options['path']} has {found.vocab_size} ids, and the model of stage {stage.name!r} rows "
            f"for {rows}; set its vocab to {found.vocab_size} or more"
        )
    return found


def tokenizer_options(stage: Stage) -> dict[str, Any]:
    """Path and other options, whichever way the stage gives them."""
    given = stage.tokenizer
    options = {"path": given} if isinstance(given, str) else dict(given)
    if not isinstance(path := options.get("path"), str) or not path:
        raise ValueError(
            "tokenizer must be the path of a tokenizer.json file, or a section with it as its key 'path'; found "
            f"{given!r}"
        )
    return options


def check(stage: Stage) -> None:
    """Raises now what building the stage would raise later, for all but what it trains on; that is in `sources`."""
    if stage.tokenizer:
        check_keys(Tokenizer, tokenizer_options(stage), what="tokenizer", extra=("length",))
    model(stage)
    dials(stage)
    augmentation(stage)
    loss, options = objective(stage)
    check_keys(loss, options, what="objective", extra=("outputs", "batch"))
    if stage.objective["name"] == "combined":
        load_module("objectives", "combined").check(options["parts"])
    supplied = ("params", "total_steps", "batch_size", "freeze_rows")
    check_keys(make_optimizer, stage.optimizer, what="optimizer", extra=supplied)
    for evaluation in stage.evals:
        evaluator = load_module("evals", evaluation.name).Evaluator
        check_keys(evaluator, evaluation.options, what="options of an evaluation", extra=("predict", "data"))
        name, data = named(evaluation.data, "data of an evaluation")
        check_keys(load_module("datasets", name).load, data, what="data of an evaluation", extra=())
        eval_spec(stage, evaluation)
        eval_dials(stage, evaluation)


def eval_data(stage: Stage, evaluation: Evaluation, runtime: Runtime) -> EvalData:
    """What an evaluator sees: its table, batches and tokenizer."""
    spec = eval_spec(stage, evaluation)
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
        patience=runtime.patience,
    )
