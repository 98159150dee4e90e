"""What a stage needs before its first step: data, model, state, the compiled step, and all that watches over it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from vidlang.core import cluster, tree
from vidlang.core.config import steps
from vidlang.core.metrics import SilentWriter, Writer
from vidlang.core.sharding import Mesh, batch_ways, make_mesh, use_mesh
from vidlang.core.wandb_writer import WandbWriter
from vidlang.data.clips import ClipTable
from vidlang.train import sources
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.feed import Feed, Shape
from vidlang.train.goodput import TRAIN, Ledger
from vidlang.train.guard import Watch
from vidlang.train.initial import awaited, take_params
from vidlang.train.meter import Meter
from vidlang.train.origins import origins
from vidlang.train.predict import Evaluations, Predict
from vidlang.train.profiling import Profiler, Steps
from vidlang.train.program import Program, stage_program
from vidlang.train.recipe import Recipe, Runtime, Stage
from vidlang.train.saved import check_same_data, make_note
from vidlang.train.signals import StopRequest
from vidlang.train.step import Fields, TrainState


@dataclass(frozen=True)
class Extras:
    """What a training may be told besides its recipe: nothing here changes a result.

    profile: steps to trace. ideal: seconds of a step at the devices' peak, from its traced program.
    exchanges: what the devices send each other in a compiled step, in words; where a mesh has several of them.
    """

    profile: Steps | None = None
    ideal: Callable[[Any], float | None] | None = None
    exchanges: Callable[[Any], str] | None = None


@dataclass
class Prepared:
    """A stage that can take its next step: `state` is that before it, all else stays as it is."""

    stage: Stage
    start: int
    total: int
    save_every: int
    state: TrainState
    compiled: dict[Shape, Callable[..., Any]]
    ideal: dict[Shape, float | None]
    checkpoints: Checkpoints
    evaluations: Evaluations
    feed: Feed
    ledger: Ledger
    meter: Meter
    profiler: Profiler
    writer: Writer


@dataclass(frozen=True)
class _Data:
    """The clips of each source, what tells them from others, and the batches that they give, over so many steps."""

    clips: list[ClipTable]
    identity: dict[str, Any]
    shapes: dict[Shape, Fields]
    total: int

    @property
    def fields(self) -> Fields:
        """Of the first source, which parameters are made for."""
        return next(iter(self.shapes.values()))


def prepare(
    stack: contextlib.ExitStack,
    recipe: Recipe,
    index: int,
    folders: Sequence[Path],
    *,
    config: Mapping[str, Any],
    stop: StopRequest,
    extras: Extras,
    checked: Program | None,
) -> Prepared:
    """Makes the stage ready, in the mesh of the recipe; `stack` closes what was opened.

    checked: the program that the check of the recipe made, where it could.
    """
    stage, runtime, folder = recipe.stages[index], recipe.runtime, folders[index]
    mesh = make_mesh(recipe.mesh)
    stack.enter_context(use_mesh(mesh))
    ledger = Ledger(None if jax.process_index() else folder.parent, folder.name)
    stack.callback(ledger.close)
    data = _read_data(stage, folder, stop)
    if checked is None or not checked.is_of(data.fields, data.total):
        checked = stage_program(recipe, index, data.fields, data.total)
    program = checked
    sources.check_classes(stage, data.clips, getattr(program.model, "heads", {}))

    ledger.turn_to("restore")
    checkpoints = stack.enter_context(
        opened(Checkpoints(folder, stage.checkpoint, make_note(config, index, data.fields, data.identity)))
    )
    state, origin = _first_state(checkpoints, recipe, index, folders, program, mesh)
    start, total = int(jax.device_get(state.step)), data.total
    profiler = Profiler(extras.profile, folder, start=start, total=total)
    stack.callback(profiler.close)
    writer = open_writer(folder, stage.name, total, start, runtime, config)
    stack.callback(writer.close)
    writer.say(describe(stage, mesh, state, start, total, origin, data.clips))

    # Opened before the step is compiled: the first batches are made meanwhile.
    stream = stack.enter_context(sources.train_stream(recipe, index, data.clips, start_step=start))
    ledger.turn_to("compile")
    compiled = _compile(program, data.shapes, mesh, writer)
    if extras.exchanges and mesh.size > 1:
        writer.say(extras.exchanges(next(iter(compiled.values()))))
    ideal = {}
    if extras.ideal:
        ideal = {shape: extras.ideal(program.traced(mesh, fields).jaxpr) for shape, fields in data.shapes.items()}

    ledger.turn_to("start")
    evaluations = Evaluations(stage, Predict(program.model, mesh, before=stop.leave_evaluation), runtime, total=total)
    with stop.at_once(f"step {start} of {total} in stage {stage.name!r}, while its evaluations were prepared"):
        evaluations.prepare()
    save_every = steps(stage.checkpoint.every, batch_size=stage.batch_size, total=total)
    feed = stack.enter_context(Feed(stream, mesh, sources.counter(stream, data.clips, runtime.max_broken_share)))
    meter = Meter(writer, stage, Watch(stage.guard, stage.name, folder, data.clips, start=start), ledger)
    stack.callback(meter.close)
    ledger.turn_to(TRAIN)
    given = (stage, start, total, save_every, state, compiled, ideal)
    return Prepared(*given, checkpoints, evaluations, feed, ledger, meter, profiler, writer)


def _read_data(stage: Stage, folder: Path, stop: StopRequest) -> _Data:
    """The data, and everything that its size decides; all processes have the same."""
    with stop.at_once(f"the data of stage {stage.name!r}, before any step"):
        clips = sources.tables(stage)
        identity = sources.identity(stage, clips)
    cluster.agree(cluster.parts("data", identity))
    check_same_data(folder, identity)
    total = steps(stage.duration, batch_size=stage.batch_size, dataset_size=sum(map(len, clips)))
    if total < 1:
        raise ValueError(f"stage {stage.name!r} lasts {stage.duration!r}, which is no step; give at least one")
    return _Data(clips, identity, sources.batch_fields(stage, clips), total)


def _first_state(
    checkpoints: Checkpoints,
    recipe: Recipe,
    index: int,
    folders: Sequence[Path],
    program: Program,
    mesh: Mesh,
) -> tuple[TrainState, str]:
    """(state, where it is from): this stage's newest readable checkpoint, else another's parameters, else scratch."""
    stage = recipe.stages[index]
    state = checkpoints.restore(program.state(mesh))
    if state is not None:
        return state, "its own checkpoint"
    found, seed = origins(recipe.stages, index), recipe.seed_of(index)
    state = program.born(mesh, seed, blank=awaited(found, stage, program.params))
    return take_params(state, found, folders, stage, program.fields, mesh) if found else (state, "scratch")


def _compile(
    program: Program, shapes: Mapping[Shape, Fields], mesh: Mesh, writer: Writer
) -> dict[Shape, Callable[..., Any]]:
    """The step, once for each shape of batch; another shape later is an error instead of a silent compilation."""
    began = time.monotonic()
    compiled: dict[Shape, Callable[..., Any]] = {
        shape: program.compile(mesh, fields) for shape, fields in shapes.items()
    }
    writer.say(f"compiled the step in {time.monotonic() - began:.1f} s")
    return compiled


def open_writer(
    folder: Path, label: str, total: int, start: int, runtime: Runtime, config: Mapping[str, Any]
) -> Writer:
    """Process 0 writes, the others are silent."""
    if jax.process_index():
        return SilentWriter()
    options: dict[str, Any] = {"total_steps": total, "first_step": start, "label": label}
    options["log_every"] = runtime.log_every
    if runtime.wandb:
        return WandbWriter(folder, project=runtime.wandb, config=config, **options)
    return Writer(folder, **options)


def describe(
    stage: Stage, mesh: Mesh, state: TrainState, start: int, total: int, origin: str, clips: Sequence[ClipTable]
) -> str:
    """What is about to happen, in four lines."""
    axes = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items() if size > 1) or "1 device"
    processes = jax.process_count()
    sizes = " + ".join(str(len(table)) for table in clips)
    return "\n".join(
        [
            f"stage {stage.name}: steps {start} to {total} on {axes}, {sizes} clips",
            f"batch {stage.batch_size}: {stage.batch_size // processes} in each of {processes} processes, "
            f"{stage.batch_size / batch_ways(mesh):g} on each device",
            f"{tree.count(state.params):,} parameters, {tree.count(state.opt_state):,} numbers in the optimizer",
            f"starts from {origin}",
        ]
    )
