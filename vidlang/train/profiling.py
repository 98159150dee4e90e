"""An XLA trace of a few steps: what ran on the devices when, for TensorBoard's profile page or Perfetto.

stage_folder/profile/   what jax.profiler writes, of process 0 and its devices
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jax
from absl import logging

FOLDER = "profile"


@dataclass(frozen=True)
class Steps:
    """Steps from `first` to `last`, without it, as Python counts."""

    first: int
    last: int


def read_steps(text: str) -> Steps:
    """What --profile=100:105 means; ValueError for what is no range."""
    parts = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if parts is None or not int(parts[1]) < int(parts[2]):
        raise ValueError(f"--profile is FIRST:LAST, as in 100:105 for the steps 100 to 104; found {text!r}")
    return Steps(int(parts[1]), int(parts[2]))


class Profiler:
    """Traces steps of a stage; without `steps`, nothing."""

    def __init__(self, steps: Steps | None, stage_folder: Path, *, start: int, total: int) -> None:
        """The stage goes from step `start` to `total`; ValueError for steps that it does not have.

        Those that it has behind it are no mistake: a launcher starts a training again with the same words.
        """
        if steps is not None and steps.last > total:
            raise ValueError(
                f"--profile={steps.first}:{steps.last} names steps that stage {stage_folder.name} will not take: it "
                f"goes to step {total}"
            )
        if steps is not None and steps.first < start:
            words = "nothing is traced: stage %s goes on from step %d, and --profile=%d:%d begins before"
            logging.warning(words, stage_folder.name, start, steps.first, steps.last)
            steps = None
        self._steps = steps if jax.process_index() == 0 else None
        self._folder = stage_folder / FOLDER
        self._runs = False

    def before(self, step: int, running: jax.Array | None) -> None:
        """Begins if it is time; `running` is what the devices still compute, which is none of these steps."""
        if self._steps is None or step != self._steps.first:
            return
        jax.block_until_ready(running)
        jax.profiler.start_trace(str(self._folder))
        self._runs = True

    def after(self, step: int, result: jax.Array) -> None:
        """Ends if it is time, once the step's `result` is there."""
        if self._runs and self._steps is not None and step + 1 == self._steps.last:
            jax.block_until_ready(result)
            self.close()
            logging.info("wrote a trace of the steps %d to %d into %s", self._steps.first, step, self._folder)

    def close(self) -> None:
        """Ends a trace that still goes on."""
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
