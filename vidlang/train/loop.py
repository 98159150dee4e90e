"""The train loop of one stage. It knows no model, no dataset and no objective.

One step is: evaluate if due, save if due, take the batch that waits on the devices, step, draw the next batch and send
it while the devices work, write the metrics of the step before. What is saved at step s has seen exactly the batches 0
to s-1; the stream of batches is a function of (seed, step), so a run that starts from that checkpoint draws again what
had only been waiting, and goes on as if it had never stopped. Metrics are fetched one step late, so that the devices
never wait for the host, but always before a save: a state that has met a non-finite loss is never saved.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from vidlang.core import cluster, tree
from vidlang.core.config import call, steps
from vidlang.core.metrics import SilentWriter, Writer, format_number, read_history
from vidlang.core.sharding import Mesh, batch_ways, make_mesh, use_mesh
from vidlang.core.wandb_writer import WandbWriter
from vidlang.data.clips import ClipTable
from vidlang.train import build, sources
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.feed import Feed
from vidlang.train.goodput import TRAIN, Ledger, read_goodput
from vidlang.train.guard import Watch
from vidlang.train.initial import awaited, take_params
from vidlang.train.meter import Meter
from vidlang.train.optimizer import Optimizer, make_optimizer
from vidlang.train.origins import origins
from vidlang.train.predict import Evaluations, Predict, is_due
from vidlang.train.profiling import Profiler, Steps
from vidlang.train.recipe import Recipe, Runtime, Stage
from vidlang.train.saved import check_same_data, make_note
from vidlang.train.signals import EvaluationLeft, Interrupted, StopRequest
from vidlang.train.step import (
    Fields,
    TrainState,
    abstract_params,
    compile_step,
    create_state,
    state_shardings,
)


@dataclass(frozen=True)
class Extras:
    """What a training may be told besides its recipe: nothing here changes a result.

    profile: steps to trace. ideal: seconds of a step at the devices' peak, from (step, state, fields of a batch).
    """

    profile: Steps | None = None
    ideal: Callable[[Callable[..., Any], TrainState, Fields], float | None] | None = None


def train_stage(
    recipe: Recipe,
    index: int,
    folders: Sequence[Path],
    *,
    config: Mapping[str, Any],
    stop: StopRequest,
    extras: Extras = Extras(),  # noqa: B008
) -> dict[str, float]:
    """Trains a stage to its end, from its newest checkpoint if it has one, and returns its last metrics.

    `folders` are those of all stages of the recipe.
    """
    stage, runtime, folder = recipe.stages[index], recipe.runtime, folders[index]
    mesh = make_mesh(recipe.mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_mesh(mesh))
        ledger = Ledger(None if jax.process_index() else folder.parent, folder.name)
        stack.callback(ledger.close)

        # Data, and everything that its size decides.
        with stop.at_once(f"the data of stage {stage.name!r}, before any step"):
            clips = sources.tables(stage)
            data = sources.identity(stage, clips)
        cluster.agree(cluster.parts("data", data))
        check_same_data(folder, data)
        total = steps(stage.duration, batch_size=stage.batch_size, dataset_size=sum(map(len, clips)))
        if total < 1:
            raise ValueError(f"stage {stage.name!r} lasts {stage.duration!r}, which is no step; give at least one")
        shapes = sources.batch_fields(stage, clips)
        fields = next(iter(shapes.values()))  # the first source's, which parameters are made for

        # Model, objective, optimizer, and the state as shapes and shards.
        model = build.model(stage)
        optimizer = build_optimizer(model, fields, stage, total)
        abstract, _ = state_shardings(model, optimizer, fields, mesh)

        # Where we start: this stage's own newest readable checkpoint; else another's parameters; else scratch.
        ledger.turn_to("restore")
        note = make_note(config, index, fields, data)
        checkpoints = stack.enter_context(opened(Checkpoints(folder, stage.checkpoint, note)))
        state, origin = checkpoints.restore(abstract), "its own checkpoint"
        if state is None:
            found, seed = origins(recipe.stages, index), recipe.seed_of(index)
            blank = awaited(found, stage, abstract.params)
            state, origin = create_state(model, optimizer, fields, mesh, seed, blank=blank), "scratch"
            if found:
                state, origin = take_params(state, found, folders, stage, fields, mesh)
        start = int(jax.device_get(state.step))
        profiler = Profiler(extras.profile, folder, start=start, total=total)
        stack.callback(profiler.close)

        writer = open_writer(folder, stage.name, total, start, runtime, config)
        stack.callback(writer.close)
        writer.say(describe(stage, mesh, state, start, total, origin, clips))

        # Opened before the step is compiled: the first batches are made meanwhile.
        stream = stack.enter_context(sources.train_stream(recipe, index, clips, start_step=start))

        # Compiled here, once for each shape of batch; another shape later is an error instead of a silent compilation.
        ledger.turn_to("compile")
        train_step = build.train_step(recipe, index, model, optimizer)
        began = time.monotonic()
        compiled = {shape: compile_step(train_step, state, shapes[shape], mesh) for shape in shapes}
        writer.say(f"compiled the step in {time.monotonic() - began:.1f} s")
        ideal = {shape: extras.ideal(train_step, state, shapes[shape]) for shape in shapes} if extras.ideal else {}

        ledger.turn_to("start")
        evaluations = Evaluations(stage, Predict(model, mesh, before=stop.leave_evaluation), runtime, total=total)
        with stop.at_once(f"step {start} of {total} in stage {stage.name!r}, while its evaluations were prepared"):
            evaluations.prepare()
        save_every = steps(stage.checkpoint.every, batch_size=stage.batch_size, total=total)
        feed = stack.enter_context(Feed(stream, mesh, sources.counter(stream, clips, runtime.max_broken_share)))
        meter = Meter(writer, stage, Watch(stage.guard, stage.name, folder, clips, start=start), ledger)
        stack.callback(meter.close)
        metrics: dict[str, float] = {}
        ledger.turn_to(TRAIN)

        for step in range(start, total + 1):
            signum, metrics = stop.agreed(), {}
            evaluate, save = evaluations.due(step), is_due(step, save_every, total)
            if signum or evaluate or save:
                meter.flush(checkpoints.latest)
            if evaluate and not signum:
                try:
                    worth = step > start
                    with ledger.during("evaluation"), saved_if_it_fails(checkpoints, step, state, worth=worth):
                        metrics = evaluations.run(evaluate, state.params, step)
                    writer.write(step, metrics)
                    writer.say(show_metrics(step, metrics))
                    checkpoints.check_best(metrics)
                except EvaluationLeft:
                    signum = stop.agreed()
            if save or signum or checkpoints.improves(metrics):
                with ledger.during("checkpoint"):
                    checkpoints.save(step, state, metrics)
            meter.restart_clock()
            if signum:
                with ledger.during("checkpoint"):
                    checkpoints.wait()
                raise Interrupted(signum, f"step {step} of {total} in stage {stage.name!r}")
            if step == total:
                break
            with meter.waiting():
                batch = feed.take()
            profiler.before(step, state.step)
            with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, scalars = compiled[batch.shape](state, batch.arrays)
            running = meter.started(step, {**scalars, **batch.counts}, batch.arrays, ideal.get(batch.shape))
            if step + 1 < total:
                with meter.waiting(behind=running):
                    feed.draw_ahead()
            profiler.after(step, scalars["loss"])
            meter.flush(checkpoints.latest)
            meter.pending = running

        with ledger.during("checkpoint"):
            checkpoints.wait()
        if jax.process_index() == 0:
            writer.say(str(read_goodput(folder.parent)))
        return {**last_train_scalars(folder), **metrics}


@contextlib.contextmanager
def saved_if_it_fails(checkpoints: Checkpoints, step: int, state: TrainState, *, worth: bool) -> Iterator[None]:
    """An error in here loses no training: the state, where it is `worth` it, is on disk before the error goes on.

    Several processes cannot agree that one of them failed, and would wait for each other; they only keep older saves.
    """
    try:
        yield
    except Exception:
        if worth and jax.process_count() == 1:
            checkpoints.save(step, state)
            checkpoints.wait()
        raise


def build_optimizer(model: nn.Module, fields: Fields, stage: Stage, total: int) -> Optimizer:
    """The optimizer of a stage of `total` steps."""
    params = abstract_params(model, fields)
    counts = {"total_steps": total, "batch_size": stage.batch_size}
    own = getattr(model, "frozen", {})
    return call(make_optimizer, stage.optimizer, what="optimizer", params=params, freeze_rows=own, **counts)


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


def show_metrics(step: int, metrics: Mapping[str, float]) -> str:
    """An evaluation for people: a line for each prefix."""
    lines: dict[str, list[str]] = {}
    for key, value in metrics.items():
        prefix, name = key.split("/", 1)
        lines.setdefault(prefix, []).append(f"{name} {format_number(value)}")
    return "\n".join(
        [f"evaluated at step {step}", *(f"  {prefix}: {'  '.join(line)}" for prefix, line in lines.items())]
    )


def last_train_scalars(folder: Path) -> dict[str, float]:
    """The last loss that was a number; a run resumed at its end has no other memory of it."""
    losses = [record["loss"] for record in read_history(folder / "metrics.jsonl") if "loss" in record]
    return {"loss": next(filter(math.isfinite, reversed(losses)), losses[-1])} if losses else {}
