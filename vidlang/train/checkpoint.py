"""Checkpoints: saved in the background, restored onto any mesh, and never trusted blindly.

A checkpoint holds the parameters, the rest of the training state, and a note: the config, the fingerprint of the part
of it that decides results, and the shapes of a batch, so that the model can be rebuilt without its data; also the
metrics of an evaluation of this very state, where there was one and `checkpoint.best` is among them. A checkpoint
that cannot be read, or whose numbers have changed, is set aside with a warning and the one before it is used;
half-written ones are never seen, because a checkpoint gets its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as ocp_managers

from vidlang.core import cluster
from vidlang.train.digest import digest
from vidlang.train.recipe import CheckpointPlan
from vidlang.train.saved import FOLDER, METRICS, NOTE, PARAMS_DIGEST, all_steps, none_readable, read_note
from vidlang.train.step import TrainState

# Key of the note for the digest of the whole state, beside that of its parameters.
DIGEST = "digest"
# How long between two looks whether a save is done, and whether another process has left.
LOOK_SECONDS, OTHERS_SECONDS = 0.005, 1.0
# Arrays of fewer bytes are written whole by one device that has them. Larger ones are by all that do, a part each, and
# to cut one out is a program to compile for each shape.
SHARED_WRITING_BYTES = 2**20


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, stage_folder: Path, plan: CheckpointPlan, note: Mapping[str, Any]) -> None:
        """`note` is what `make_note` gives; it is kept in every checkpoint."""
        self.folder = Path(stage_folder).absolute() / FOLDER
        self._plan, self._note = plan, dict(note)
        self._meeting = _Meeting()
        self._manager = _open(self.folder, _KeepLatestAndBest(plan.keep, self._best_of), self._meeting)
        self._scores: dict[int, float] = {}
        for step in self._manager.all_steps():
            if (score := self._read_score(step)) is not None:
                self._scores[step] = score
        self._started: int | None = None

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving in the background; once per step. `metrics` are those of an evaluation of this very state.

        A step that was saved before its evaluation only gets the metrics, when they come.
        """
        score = self._score(metrics)
        if step in self._manager.all_steps():
            if score is not None and step not in self._scores:
                self._add_metrics(step, metrics or {}, score)
            return
        items = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            NOTE: ocp.args.JsonSave({**self._note, DIGEST: digest(state), PARAMS_DIGEST: digest(state.params)}),
        }
        self._scores.pop(step, None)
        if score is not None:
            items[METRICS] = ocp.args.JsonSave(dict(metrics or {}))
        # Here, so that what went wrong with the save before is not blamed on this one.
        self.wait()
        with self._explained():
            self._started = step
            if score is not None:
                self._scores[step] = score
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def check_best(self, metrics: Mapping[str, float]) -> None:
        """ValueError when the evaluation that should give the metric `best` ran, and has no such metric."""
        best = self._plan.best
        found = [name for name in metrics if name.split("/")[0] == best.split("/")[0]]
        if best and found and best not in metrics:
            raise ValueError(f"checkpoint.best is {best!r}, but that evaluation gives: {', '.join(found)}")

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Is this evaluation better than that of every checkpoint kept? What is no finite number never is."""
        score = self._score(metrics)
        known = (self._scores[step] for step in self._manager.all_steps() if step in self._scores)
        return score is not None and all(score > other for other in known)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state that can be read, laid out as `abstract` says; None where there is no checkpoint."""
        failures: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, failure = self._try(step, abstract)
            if state is None:
                failures.append(f"step {step}: {failure}")
                logging.warning("checkpoint %s cannot be read (%s)", self.folder / str(step), failures[-1])
                continue
            self._set_aside([found for found in self._manager.all_steps() if found > step])
            return state
        if failures:
            raise ValueError(none_readable(self.folder, failures))
        return None

    def wait(self) -> None:
        """Returns when everything saved is on disk; OSError when it could not be written."""
        looked = time.monotonic()
        with self._explained():
            while self._manager.is_saving_in_progress() and self._meeting.failure is None:
                time.sleep(LOOK_SECONDS)
                if time.monotonic() - looked > OTHERS_SECONDS:
                    # A process that failed to write its part has left, and Orbax would wait for it for minutes.
                    cluster.leave_after_others()
                    looked = time.monotonic()
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the background threads; not when another process left, for whom they wait."""
        try:
            self.wait()
        except OSError:
            self._manager.close()
            raise
        self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """A save that failed, in one sentence; one in the background shows when the next begins or is waited for."""
        try:
            yield
        except Exception as error:
            # As in `restore`: what Orbax raises has no common class.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            complete = all_steps(self.folder.parent)
            last = f"the last complete checkpoint is step {complete[-1]}" if complete else "there is no checkpoint yet"
            raise OSError(
                f"could not save step {self._started} to {self.folder}: {reason}; "
                f"{shutil.disk_usage(self.folder).free / 1e6:,.0f} MB free there; {last}"
            ) from error

    def _score(self, metrics: Mapping[str, Any] | None) -> float | None:
        """How good these metrics are, more is better; None without a finite value of `best`."""
        value = (metrics or {}).get(self._plan.best)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        return float(value if self._plan.best_mode == "max" else -value)

    def _read_score(self, step: int) -> float | None:
        path = self.folder / str(step) / METRICS / "metadata"
        if not self._plan.best or not path.is_file():
            return None
        try:
            return self._score(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            logging.warning("%s cannot be read, so step %s does not count as the best (%s)", path, step, error)
            return None

    def _best_of(self, steps: Sequence[int]) -> int | None:
        """The best of these steps, the newer of equals."""
        known = [step for step in steps if step in self._scores]
        return max(known, key=lambda step: (self._scores[step], step), default=None)

    def _add_metrics(self, step: int, metrics: Mapping[str, float], score: float) -> None:
        """Puts metrics into a checkpoint that is complete; the file gets its name when it is written."""
        self.wait()
        self._started, folder = step, self.folder / str(step) / METRICS
        if jax.process_index() == 0:
            with self._explained():
                folder.mkdir(exist_ok=True)
                temporary = folder / "metadata.tmp"
                temporary.write_text(json.dumps(dict(metrics)), encoding="utf-8")
                temporary.replace(folder / "metadata")
        self._scores[step] = score

    def _try(self, step: int, abstract: TrainState) -> tuple[TrainState | None, str]:
        """(the state of a checkpoint, what is wrong with it); what one process cannot read, none takes."""
        state, want, failure = None, None, ""
        try:
            state, want = self._read(step, abstract)
        except Exception as error:
            # What Orbax and the file system raise on a damaged file has no common class.
            failure = f"{type(error).__name__}: {str(error)[:300]}"
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.bool_(failure != "")).any():
            return None, failure or "another process could not read its part"
        # The digest is a sum over all processes, so none may be missing here.
        if state is not None and want is not None and want != digest(state):
            return None, "its numbers are not those that were saved"
        return state, failure

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, int | None]:
        """(this process's part of a state, the digest of the whole); checkpoints of before have none."""
        note = read_note(self.folder.parent, step)
        wanted = {"params": abstract.params, "rest": {"step": abstract.step, "opt_state": abstract.opt_state}}
        # Not through the manager, where processes that could read wait for those that could not.
        handler = ocp.StandardCheckpointHandler()
        found = {
            name: handler.restore(self.folder / str(step) / name, args=ocp.args.StandardRestore(item))
            for name, item in wanted.items()
        }
        rest = found["rest"]
        return TrainState(rest["step"], found["params"], rest["opt_state"]), note.get(DIGEST)

    def _set_aside(self, steps: list[int]) -> None:
        """Moves unreadable checkpoints out of the way, so that training can save those steps again."""
        if not steps:
            return
        aside = self.folder.with_name("unreadable_checkpoints")
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step in steps:
                number = sum(1 for _ in aside.glob(f"{step}*"))
                (self.folder / str(step)).rename(aside / (f"{step}.{number}" if number else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set aside unreadable checkpoints")
        logging.warning("moved the unreadable checkpoints of steps %s to %s", steps, aside)
        self._manager.reload()


@contextlib.contextmanager
def opened(checkpoints: Checkpoints) -> Iterator[Checkpoints]:
    """Closes the checkpoints at the end, whatever happens; an error from in here is not hidden by one of closing."""
    try:
        yield checkpoints
    except BaseException as error:
        if cluster.lost_another(error):
            # Its part of a save in the background never comes, and neither would the end of this process.
            logging.warning("not waiting for a save in the background: another process is lost")
            raise
        try:
            checkpoints.close()
        except OSError as failure:
            logging.warning("%s", failure)
        except SystemExit:
            logging.warning("a save in the background has ended without being complete")
        raise
    checkpoints.close()


class _KeepLatestAndBest(ocp_managers.PreservationPolicy):
    """Which checkpoints stay: the latest ones, and the best."""

    def __init__(self, keep: int, best_of: Callable[[Sequence[int]], int | None]) -> None:
        self._keep, self._best_of = keep, best_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [info.step for info in checkpoints]
        kept = {*sorted(steps)[-self._keep :], self._best_of(steps)}
        return [step in kept for step in steps]


class _Meeting:
    """How the processes' threads that save wait for each other; one whose own part failed says so instead."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._meet = ocp.multihost.get_barrier_sync_fn()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        # Orbax comes here after a failure too, and the others, who wait elsewhere, never would.
        failure = sys.exc_info()[1]
        if failure is not None and threading.current_thread() is not threading.main_thread():
            self.failure = failure
            raise failure
        self._meet(key=key, timeout_ms=timeout_ms)


def _open(folder: Path, policy: _KeepLatestAndBest, meeting: _Meeting) -> ocp.CheckpointManager:
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_WRITING_BYTES)
    ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(barrier_sync_fn=meeting),
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(folder, options=options, item_names=("params", "rest", NOTE, METRICS))
