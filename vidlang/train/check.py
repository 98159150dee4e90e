"""Everything that a config alone decides, tried out before any data is made or read, for all stages of a recipe.

Making a corpus takes minutes and a first stage hours; a typo in the second must not wait for them. So each stage is
built here in shapes only: its model, objective and optimizer take one step on a batch that holds nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.errors import ScopeParamShapeError

from vidlang.core import wandb_writer
from vidlang.core.config import steps
from vidlang.core.sharding import Mesh, batch_ways, make_mesh, use_mesh
from vidlang.data.crops import choose_crop
from vidlang.data.fields import expected_field
from vidlang.data.frames import choose_times
from vidlang.data.pipeline import ClipSpec
from vidlang.ops.dials import OFF, Dials, streams
from vidlang.train import build, carry, curriculum, sources
from vidlang.train.initial import combine, tower_of, tower_of_weights
from vidlang.train.optimizer import check_patterns
from vidlang.train.origins import Run, Weights, origins
from vidlang.train.program import Program, stage_program
from vidlang.train.recipe import Recipe, Runtime, Stage
from vidlang.train.saved import find_checkpoint, params_shapes
from vidlang.train.step import Fields, pick_inputs, with_video

# Stands for a dataset whose size nobody knows yet: so many clips that a warm-up fits into any duration in epochs.
MANY = 10**12
SEEDS = 2**32


def check_recipe(recipe: Recipe) -> list[Program | None]:
    """Raises now what training any of the stages would raise later, for all that needs no data.

    Gives the programs of the stages, traced; None where only the data can tell what a batch holds.
    """
    last = recipe.seed_of(len(recipe.stages) - 1) if _is_whole(recipe.seed) else -1
    if not (_is_whole(recipe.seed) and 0 <= recipe.seed <= last < SEEDS):
        raise ValueError(
            f"seed is {recipe.seed!r}; it must be a whole number from 0 to {SEEDS - len(recipe.stages)}: each stage "
            "adds its place to it, and 32 bits must hold the sum"
        )
    _check_runtime(recipe.runtime)
    mesh = make_mesh(recipe.mesh)
    programs: list[Program | None] = []
    with use_mesh(mesh):
        for index, stage in enumerate(recipe.stages):
            with _named(f"stage {stage.name!r}"):
                sources.check(stage)
                build.check(stage)
                total = _check_durations(stage)
                specs = _check_clips(stage, mesh)
                check_patterns("init_allow", stage.init_allow)
                # What columns of one's own are like, only the table knows.
                is_known = all(expected_field(name) for spec in specs for name in spec.fields)
                programs.append(_check_step(recipe, index, specs, total, mesh) if is_known else None)
                _check_origins(recipe, index, [None if program is None else program.params for program in programs])
    curriculum.check(recipe.curriculum, recipe.stages)
    return programs


def _check_runtime(runtime: Runtime) -> None:
    for name, least in {"workers": -1, "eval_workers": -1, "log_every": 1}.items():
        value = getattr(runtime, name)
        if not _is_whole(value) or value < least:
            raise ValueError(f"runtime.{name} must be a whole number from {least} on; found {value!r}")
    share = runtime.max_broken_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"runtime.max_broken_share must be a number from 0 to below 1; found {share!r}")
    wandb_writer.require(runtime.wandb)


def _check_durations(stage: Stage) -> int:
    """The steps of the stage, or very many where the size of its data decides; all its durations can be read."""
    size = stage.batch_size
    with _named("duration"):
        total = steps(stage.duration, batch_size=size, dataset_size=MANY)
    if total < 1:
        raise ValueError(f"it lasts {stage.duration!r}, which is no step; give at least one")
    with _named("checkpoint.every"):
        steps(stage.checkpoint.every, batch_size=size, total=total)
    for evaluation in stage.evals:
        with _named(f"every of {evaluation.label}"):
            steps(evaluation.every, batch_size=size, total=total)
    return total


def _check_clips(stage: Stage, mesh: Mesh) -> list[ClipSpec]:
    """What clips of the stage look like; they and those of evaluations can be drawn, and their batches shared."""
    specs = sources.specs(stage)
    size = stage.batch_size
    for (what, _), spec in zip(sources.named_parts(stage), specs, strict=True):
        with _named(what) if len(specs) > 1 else contextlib.nullcontext():
            _draw(spec, np.random.default_rng(0))
            if spec.views * spec.crops > 1:
                raise ValueError("clip.views and clip.crops are for evaluations; training sees one of each")
            if spec.pairs == "group" and size % 2:
                raise ValueError(
                    f"with clip.pairs 'group' half of a batch are partners, so batch_size is even; found {size}"
                )
    _check_shared(size)
    if size % batch_ways(mesh):
        raise ValueError(
            f"batch_size {size} does not divide over the {batch_ways(mesh)} devices of the mesh axes data and fsdp; "
            "choose a multiple, or another mesh"
        )
    parts, ways = build.micro(stage).batches, batch_ways(mesh)
    if size % (parts * ways):
        raise ValueError(
            f"batch_size {size} does not divide into micro.batches = {parts} parts over {ways} devices of the mesh "
            f"axes data and fsdp; choose a multiple of {parts * ways}"
        )
    for evaluation in stage.evals:
        with _named(evaluation.label):
            _draw(build.eval_spec(stage, evaluation), None)
            _check_shared(evaluation.batch_size)
    return specs


def _draw(spec: ClipSpec, rng: np.random.Generator | None) -> None:
    """Chooses the frames of a clip that does not exist, as its rules would; evaluations draw nothing."""
    if 0 < spec.text_length < 3:
        raise ValueError(f"clip.text_length is {spec.text_length}; a begin, a word and an end need at least 3")
    draws = spec.features is None and not spec.text_only
    for name, rule in {"times": spec.times, "crop": spec.crop}.items() if draws else ():
        with _named(f"clip.{name}"):
            try:
                if name == "times":
                    views = spec.views if rng is None else 1
                    choose_times(rng, 0.0, 1.0, spec.frames, views=views, duration=1.0, source_fps=1.0, **rule)
                else:
                    choose_crop(rng, 64, 64, views=spec.crops if rng is None else 1, **rule)
            except (TypeError, IndexError) as error:  # an option of another kind than the rule computes with
                raise ValueError(f"the options {dict(rule)} cannot be used: {error}") from error


def _check_shared(batch_size: int) -> None:
    if batch_size % (processes := jax.process_count()):
        raise ValueError(f"batch_size {batch_size} does not divide over {processes} processes; choose a multiple")


def _check_step(recipe: Recipe, index: int, specs: Sequence[ClipSpec], total: int, mesh: Mesh) -> Program:
    """The stage's program, after one step and a look at the clips of each evaluation, all in shapes."""
    stage = recipe.stages[index]
    shapes = list(sources.batch_fields(stage, None).values())
    program = stage_program(recipe, index, shapes[0], total)
    for fields in shapes:
        with _other_model():
            program.traced(mesh, fields)
    for evaluation in stage.evals:
        other, dials = build.eval_spec(stage, evaluation), build.eval_dials(stage, evaluation)
        same = all(getattr(other, name) == getattr(specs[0], name) for name in ("video_shape", "text_length"))
        if not same or dials != OFF:
            with _named(evaluation.label):
                _check_call(program.model, program.params, _eval_fields(stage.batch_size, other), dials)
    return program


def _eval_fields(size: int, spec: ClipSpec) -> Fields:
    """What of an evaluation's batch the model reads."""
    fields: dict[str, jax.ShapeDtypeStruct] = {}
    if not spec.text_only:
        fields[spec.video_field] = jax.ShapeDtypeStruct((size, *spec.video_shape), spec.video_dtype)
    if spec.text_length:
        fields["text_BL"] = jax.ShapeDtypeStruct((size, spec.text_length), np.int32)
    return fields


def _check_call(model: nn.Module, params: Any, fields: Fields, dials: Dials) -> None:
    """Raises when the model, with the parameters it was made with, cannot take these clips."""

    def forward(params: Any, batch: Any) -> Any:
        inputs, rngs = pick_inputs(model, with_video(batch)), streams(jax.random.key(0))
        return model.apply({"params": params}, *inputs, train=False, dials=dials, rngs=rngs)

    with _other_model():
        jax.eval_shape(forward, params, dict(fields))


@contextlib.contextmanager
def _other_model() -> Iterator[None]:
    """Explains parameters that are not those which the model was made with."""
    try:
        yield
    except ScopeParamShapeError as error:
        raise ValueError(f"its clips need another model than the stage's clips do: {error}") from error


def _check_origins(recipe: Recipe, index: int, known: Sequence[Any]) -> None:
    """Raises where a source is not there, and what taking parameters from it would raise when the stage begins.

    known: the parameters of the stages up to this one, as shapes, None where they are not known.
    """
    stage, params = recipe.stages[index], known[-1]
    sources: list[tuple[str, Any, carry.Tower | None]] = []
    are_known = params is not None
    for origin in origins(recipe.stages, index):
        if isinstance(origin, Run):
            folder, step = find_checkpoint(origin.path)
            sources.append((f"step {step} of {folder}", params_shapes(folder, step), tower_of(folder, step, stage)))
        elif isinstance(origin, Weights):
            origin.check(stage.model, stage.init_allow)
            sources.append((str(origin), origin.shapes(stage.model), tower_of_weights(origin)))
        elif known[origin.index] is not None:
            before = recipe.stages[origin.index]
            tower = carry.tower(before.model, _first_fields(before))
            sources.append((f"what stage {before.name!r} trains", known[origin.index], tower))
        else:
            are_known = False
    if not sources or not are_known:
        return
    names, shapes, towers = zip(*sources, strict=True)
    here = carry.tower(stage.model, _first_fields(stage))

    def take(target: Any, shapes: Sequence[Any]) -> Any:
        carried = [carry.carry(*each, here)[0] for each in zip(shapes, [target] * len(shapes), towers, strict=True)]
        return combine(target, list(zip(names, carried, strict=True)), stage.init_allow)[0]

    jax.eval_shape(take, params, shapes)


def _first_fields(stage: Stage) -> Fields:
    """Those of the first source, which parameters are made for."""
    return next(iter(sources.batch_fields(stage, None).values()))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Says where in the config a mistake is; of an error that is none of the user's, a note says it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"while checking {where}")
        raise
