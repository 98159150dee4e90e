"""A training is a list of stages: each in its own folder, each from where the one before ended.

    workdir/config.json               the config of the run
    workdir/metrics.json              the last stage's metrics, once it is done
    workdir/.lock                     held by the process that trains here
    workdir/goodput.jsonl             where the time went, over all restarts
    workdir/compiled/                 programs, so that the next start compiles none
    workdir/0_name/checkpoints/900/   complete checkpoints
    workdir/0_name/metrics.jsonl      every step's scalars and every evaluation
    workdir/0_name/batches.jsonl      the clips of steps that went wrong
    workdir/0_name/metrics.json       the stage's last metrics; written last, so it marks the stage as finished

Running the same command again goes on where the run stopped: a finished stage is not done again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from vidlang.core import cluster, versions, xla
from vidlang.core.config import to_dict
from vidlang.train.check import check_recipe
from vidlang.train.extract import make
from vidlang.train.loop import train_stage
from vidlang.train.origins import only_run, origins
from vidlang.train.prepared import Extras
from vidlang.train.program import Program
from vidlang.train.recipe import Recipe, read_recipe
from vidlang.train.run_files import CONFIG, METRICS, is_finished, read_metrics, write_json
from vidlang.train.saved import all_steps, check_same_result, stage_folders
from vidlang.train.signals import Interrupted, StopRequest

LOCK = ".lock"
# What flock says on a file system that has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def train(config: Any, workdir: str | Path, *, extras: Extras = Extras()) -> dict[str, float]:  # noqa: B008
    """Runs every stage that is not finished yet; returns the metrics of the last one.

    `extras.profile` is about the first stage that is trained here.
    """
    if not str(workdir):
        raise ValueError("the workdir is empty; name a folder for the run, as in --workdir=runs/first")
    workdir = Path(workdir).absolute()
    plain = to_dict(config)
    if jax.distributed.is_initialized():
        cluster.agree({**versions.facts(), "the devices": _devices(), **cluster.parts("config", plain, depth=3)})
    recipe = read_recipe(config)
    programs = check_recipe(recipe)
    with _locked(workdir):
        _check_workdir(workdir, recipe, plain)
        if jax.process_index() == 0:
            write_json(workdir / CONFIG, plain)
        xla.keep_programs(recipe.runtime.compile_cache, workdir)
        with StopRequest() as stop:
            try:
                for index in range(len(recipe.stages)):
                    trains = not is_finished(workdir / recipe.folder(index))
                    # Taken out of the list, for a trace is large and of no use after its stage.
                    checked, programs[index] = programs[index], None
                    metrics = _run_stage(recipe, index, workdir, plain, stop, extras, checked)
                    extras = dataclasses.replace(extras, profile=None) if trains else extras
            except Interrupted as interruption:
                _say_goodbye(interruption)
                raise
        if jax.process_index() == 0:
            write_json(workdir / METRICS, metrics)
    return metrics


def _devices() -> str:
    """What computes in this process."""
    found = jax.local_devices()
    return f"{len(found)} x {found[0].device_kind}"


def _run_stage(
    recipe: Recipe,
    index: int,
    workdir: Path,
    config: Mapping[str, Any],
    stop: StopRequest,
    extras: Extras,
    checked: Program | None,
) -> dict[str, float]:
    """Trains stage `index`, unless it is finished; returns its last metrics."""
    folder = workdir / recipe.folder(index)
    if is_finished(folder):
        return read_metrics(folder)
    if signum := stop.agreed():
        raise Interrupted(signum, f"before stage {recipe.stages[index].name!r}")
    folders = [workdir / recipe.folder(each) for each in range(len(recipe.stages))]
    if recipe.stages[index].extract:
        _extract(recipe, index, only_run(origins(recipe.stages, index), folders), stop)
    metrics = train_stage(recipe, index, folders, config=config, stop=stop, extras=extras, checked=checked)
    if jax.process_index() == 0:
        write_json(folder / METRICS, metrics)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"stage {index} is finished")
    return metrics


def _extract(recipe: Recipe, index: int, run: str, stop: StopRequest) -> None:
    """Makes the features that a stage reads; what is there already is not made again, whatever ended the run before."""
    stage = recipe.stages[index]
    if not run:
        raise ValueError(
            f"stage {stage.name!r} extracts features, and nothing was trained before it; name a run as its init_from"
        )
    for each in stage.extract:
        with stop.at_once(f"the features {each.out} of stage {stage.name!r}"):
            report = make(each, run, workers=recipe.runtime.eval_workers)
        if report.total:
            logging.info("%s: %d clips encoded, %d of them unreadable", each.out, report.done, report.broken)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Makes the folder and keeps other trainings out of it; with several processes, process 0 does so for all."""
    with contextlib.ExitStack() as stack:
        refusal: ValueError | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_lock(workdir))
            except ValueError as error:
                refusal = error
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.int32(refusal is not None))
            if refused and refusal is None:
                refusal = ValueError(f"process 0 could not take {workdir} for this training; it says why")
        if refusal is not None:
            raise refusal
        # Process 0 has made it; who does not see it has a disk of its own there.
        cluster.agree({"the workdir": f"{workdir}{'' if (workdir / LOCK).exists() else ' (not there)'}"})
        yield


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[None]:
    """Holds workdir/.lock. The file stays: removing it would let two others each lock one of that name."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a")
    except OSError as error:
        found = "is a file" if workdir.is_file() else f"cannot be made or written to ({error.strerror})"
        raise ValueError(f"{workdir} {found}; give the folder of the run as --workdir") from error
    with lock:
        locked = _try_lock(lock.fileno(), workdir)
        try:
            yield
        finally:
            # By hand: a child process may have got a copy of the open file, which would keep the lock.
            if locked:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _try_lock(file: int, workdir: Path) -> bool:
    """True when locked, False with a warning where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process is training in {workdir}; wait for it, stop it, or give another --workdir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logging.warning("%s cannot be locked (%s): start no second training in it", workdir, error.strerror)
        return False
    return True


def _check_workdir(workdir: Path, recipe: Recipe, config: Mapping[str, Any]) -> None:
    """ValueError when the folder holds another run's results, before anything in it is touched."""
    if not workdir.exists():
        return
    expected = {recipe.folder(index): index for index in range(len(recipe.stages))}
    for folder in stage_folders(workdir):
        if folder.name in expected:
            check_same_result(folder, config, expected[folder.name])
        elif all_steps(folder):
            raise ValueError(
                f"{workdir} already holds a stage {folder.name}, and this config has {', '.join(expected)}; give "
                "the config of that run, or a new --workdir"
            )


def _say_goodbye(interruption: Interrupted) -> None:
    if jax.process_index() == 0:
        name = signal.Signals(interruption.signum).name
        sentence = f"stopped by {name} at {interruption.where}; all is saved, the same command goes on from there"
        print(sentence, file=sys.stderr, flush=True)
