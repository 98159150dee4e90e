"""Leaving politely: SIGTERM and SIGINT ask the run to save and stop; a second SIGINT ends it at once.

A handler only takes a note. The loop looks at it between two steps, where the state is whole. While data is made,
which can take long and leaves nothing half done, a signal ends the run at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The run stopped because it was told to, after saving; the exit code is 128 + the signal, as shells have it."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(128 + signum)
        self.signum, self.where = signum, where


class EvaluationLeft(BaseException):
    """A signal came during an evaluation: it is dropped, and run again by the run that resumes."""


class StopRequest:
    """Takes note of signals while it is entered; outside the main thread, which alone gets signals, it does nothing."""

    def __init__(self) -> None:
        self._signum = 0
        self._at_once = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._take_note) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    @contextlib.contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """In here a signal raises Interrupted on the spot; with several processes it is only noted, as elsewhere."""
        self._at_once = "" if jax.distributed.is_initialized() else where
        try:
            yield
        finally:
            self._at_once = ""

    @property
    def here(self) -> int:
        """The signal that this process got, or 0."""
        return self._signum

    def agreed(self) -> int:
        """The signal that any process got, or 0; all processes call this at the same step and get the same answer."""
        if jax.process_count() == 1:
            return self._signum
        return int(multihost_utils.process_allgather(np.int32(self._signum)).max())

    def leave_evaluation(self) -> None:
        """Raises EvaluationLeft when a signal came. Several processes cannot agree in there: they finish it first."""
        if self._signum and jax.process_count() == 1:
            raise EvaluationLeft

    def _take_note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._signum = signum
        if self._at_once:
            raise Interrupted(signum, self._at_once)
