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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vidlang.core.metrics import format_number, read_history
from vidlang.train.checkpoint import Checkpoints
from vidlang.train.goodput import read_goodput
from vidlang.train.predict import is_due
from vidlang.train.prepared import Extras, Prepared, prepare
from vidlang.train.program import Program
from vidlang.train.recipe import Recipe
from vidlang.train.signals import EvaluationLeft, Interrupted, StopRequest
from vidlang.train.step import TrainState


def train_stage(
    recipe: Recipe,
    index: int,
    folders: Sequence[Path],
    *,
    config: Mapping[str, Any],
    stop: StopRequest,
    extras: Extras = Extras(),  # noqa: B008
    checked: Program | None = None,
) -> dict[str, float]:
    """Trains a stage to its end, from its newest checkpoint if it has one, and returns its last metrics.

    `folders` are those of all stages of the recipe; `checked` is what its check gave for this one.
    """
    folder, metrics = folders[index], dict[str, float]()
    with contextlib.ExitStack() as stack:
        run = prepare(stack, recipe, index, folders, config=config, stop=stop, extras=extras, checked=checked)
        for step in range(run.start, run.total + 1):
            metrics = _look(run, step, stop)
            if step < run.total:
                _advance(run, step)
        with run.ledger.during("checkpoint"):
            run.checkpoints.wait()
        if jax.process_index() == 0:
            run.writer.say(str(read_goodput(folder.parent)))
        return {**last_train_scalars(folder), **metrics}


def _look(run: Prepared, step: int, stop: StopRequest) -> dict[str, float]:
    """Evaluates, saves and leaves where this is due before `step`; the metrics of the evaluations."""
    signum, metrics = stop.agreed(), dict[str, float]()
    evaluate, save = run.evaluations.due(step), is_due(step, run.save_every, run.total)
    if signum or evaluate or save:
        run.meter.flush(run.checkpoints.latest)
    if evaluate and not signum:
        try:
            metrics = _evaluate(run, evaluate, step)
        except EvaluationLeft:
            signum = stop.agreed()
    if save or signum or run.checkpoints.improves(metrics):
        with run.ledger.during("checkpoint"):
            run.checkpoints.save(step, run.state, metrics)
    run.meter.restart_clock()
    if signum:
        with run.ledger.during("checkpoint"):
            run.checkpoints.wait()
        raise Interrupted(signum, f"step {step} of {run.total} in stage {run.stage.name!r}")
    return metrics


def _evaluate(run: Prepared, due: Any, step: int) -> dict[str, float]:
    """The metrics of the evaluations that are due, written down."""
    worth = step > run.start
    with run.ledger.during("evaluation"), saved_if_it_fails(run.checkpoints, step, run.state, worth=worth):
        metrics: dict[str, float] = run.evaluations.run(due, run.state.params, step)
    run.writer.write(step, metrics)
    run.writer.say(show_metrics(step, metrics))
    run.checkpoints.check_best(metrics)
    return metrics


def _advance(run: Prepared, step: int) -> None:
    """One step: sent to the devices, the next batch drawn while they work, the scalars of the step before written."""
    with run.meter.waiting():
        batch = run.feed.take()
    run.profiler.before(step, run.state.step)
    with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=step):
        run.state, scalars = run.compiled[batch.shape](run.state, batch.arrays)
    running = run.meter.started(step, {**scalars, **batch.counts}, batch.arrays, run.ideal.get(batch.shape))
    if step + 1 < run.total:
        with run.meter.waiting(behind=running):
            run.feed.draw_ahead()
    run.profiler.after(step, scalars["loss"])
    run.meter.flush(run.checkpoints.latest)
    run.meter.pending = running


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
