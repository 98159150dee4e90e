"""Helper processes that end when the one that started them does, however it ended.

`worker_pool` is for work that is trusted. `run_jobs` is for work that may hang, or take its process down with it: it
knows which helper has which job, so one that dies or falls silent is replaced and costs no other job anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
# Names of mallopt's parameters in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# A helper that takes longer to begin hangs; a file system under load may take minutes to give it the libraries.
START_SECONDS = 600.0


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes: spawned, for the caller may already run the threads of an accelerator's runtime."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)


@contextlib.contextmanager
def without_main(sent: Any) -> Iterator[None]:
    """Processes that are spawned meanwhile do not run the main module again, but where what they are sent is from it.

    A training's main module imports all of it: that was half of what a data worker needs to begin, and of its memory.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {}
    if b"__main__" not in pickle.dumps(sent):
        hidden = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def end_with_parent(last: Callable[[], None] = lambda: None) -> None:
    """To be called first in a helper process; `last` is called before it ends because its parent has."""
    # Ctrl-C reaches the whole process group; the main process ends its helpers, without their tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A main process that is killed can end nobody; its helpers would wait for ever, and hold their memory.
    threading.Thread(target=_watch_parent, args=(last,), daemon=True).start()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc keep what decoders free, for the next clip needs it again.

    By default a fresh process gives the end of its heap back after every clip and takes it again, page by page: that
    was a third of a clip's time. A process that has once freed something large, as training does, no longer does so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no such habit
        mallopt(_MMAP_THRESHOLD, 16 << 20)
        mallopt(_TRIM_THRESHOLD, 128 << 20)


def _watch_parent(last: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in helper processes only"
    parent.join()
    last()
    os._exit(1)


@dataclass(frozen=True)
class Sign:
    """A helper is at work on a job, and says how it goes."""

    news: Any


@dataclass(frozen=True)
class Lost:
    """A job that got no answer: its helper was silent for too long ("timeout") or died of it twice ("killed")."""

    kind: str
    reason: str


def run_jobs(
    function: Callable[[Job, Callable[[Any], None]], Any],
    jobs: Iterable[Job],
    *,
    workers: int,
    silence: float | None = None,
    room: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[Job, Any]]:
    """Calls function(job, sign) for each job in helper processes; (job, what it returned, a Sign or Lost) as they come.

    A helper that calls `sign` less than every `silence` seconds is killed. A job whose helper dies is tried once more,
    with no other job running, as what kills helpers is mostly want of memory. While `room()` is false no job is
    started unless none is running. An exception in a helper is raised here.
    """
    crew = _Crew(function, iter(jobs), workers, silence, room)
    try:
        while crew.start_jobs():
            yield from crew.news()
    finally:
        crew.dismiss()


class _Helper(Generic[Job]):
    """One helper process with the job that it has."""

    def __init__(self, function: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with without_main(function):
            self.process.start()
        theirs.close()
        self.ready, self.job, self.busy, self.heard = False, None, False, time.monotonic()

    def give(self, job: Any) -> None:
        """Starts it on a job."""
        self.job, self.busy, self.heard = job, True, time.monotonic()
        try:
            self.pipe.send(job)
        except OSError:  # it is dead, which reading from it will tell
            return

    def end(self) -> int | None:
        """Ends it, whatever it does; returns the exit code."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


class _Crew(Generic[Job]):
    """The helpers of one run_jobs and the jobs they have not answered."""

    def __init__(
        self,
        function: Callable[..., Any],
        jobs: Iterator[Job],
        workers: int,
        silence: float | None,
        room: Callable[[], bool],
    ) -> None:
        self._function, self._jobs, self._silence, self._room = function, jobs, silence, room
        self._size = workers
        self._helpers: list[_Helper[Job]] = []
        self._retries: deque[Job] = deque()
        self._second: Any = None  # the job that is tried again, while it is
        self._began = False  # whether any helper ever has

    def start_jobs(self) -> bool:
        """Gives jobs to idle helpers; False when there is nothing more to wait for."""
        while True:
            busy = sum(helper.busy for helper in self._helpers)
            if self._retries:
                if not busy:
                    self._second = self._retries.popleft()
                    self._idle().give(self._second)
                return True
            if self._second is not None or busy >= self._size or (busy and not self._room()):
                return True
            job = next(self._jobs, None)
            if job is None:
                return busy > 0
            self._idle().give(job)

    def news(self) -> Iterator[tuple[Job, Any]]:
        """Waits for a while and gives what was heard."""
        ready = wait([helper.pipe for helper in self._helpers if helper.busy], timeout=0.5)
        for helper in [helper for helper in self._helpers if helper.busy]:
            if helper.pipe in ready:
                yield from self._listen(helper)
                continue
            silent = time.monotonic() - helper.heard
            if not helper.ready and silent > START_SECONDS:
                job: Any = helper.job
                self._remove(helper, keep_second=True)
                yield from self._try_again(job, "timeout", f"had not begun after {START_SECONDS:g} s")
            elif self._silence is not None and helper.ready and silent > self._silence:
                job = helper.job
                self._remove(helper)
                yield job, Lost("timeout", f"nothing came of it for {self._silence:g} s")

    def _listen(self, helper: _Helper[Job]) -> Iterator[tuple[Job, Any]]:
        job: Any = helper.job
        try:
            what, content = helper.pipe.recv()
        except (EOFError, OSError):
            code = self._remove(helper, keep_second=True)
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            if code is not None and code >= 0 and not self._began:
                raise _no_start(how) from None
            yield from self._try_again(job, "killed", how, "; memory may be short" if code == -signal.SIGKILL else "")
            return
        helper.ready, helper.heard, self._began = True, time.monotonic(), True
        if what == "sign":
            yield job, Sign(content)
        elif what == "error":
            raise content
        elif what == "answer":
            helper.job, helper.busy, self._second = None, False, None
            yield job, content

    def _try_again(self, job: Any, kind: str, how: str, hint: str = "") -> Iterator[tuple[Job, Any]]:
        """Has a job whose helper is gone tried again, once."""
        if self._second is not None and not self._began:  # that is no job's fault
            raise _no_start(how)
        if self._second is None:
            self._retries.append(job)
        else:
            self._second = None
            yield job, Lost(kind, f"the process that cut it {how}, twice{hint}")

    def _idle(self) -> _Helper[Job]:
        for helper in self._helpers:
            if not helper.busy:
                return helper
        self._helpers.append(_Helper(self._function))
        return self._helpers[-1]

    def _remove(self, helper: _Helper[Job], keep_second: bool = False) -> int | None:
        self._helpers.remove(helper)
        if not keep_second:
            self._second = None
        return helper.end()

    def dismiss(self) -> None:
        """Ends all helpers; none of them holds anything that is not on the disk."""
        for helper in self._helpers:
            helper.end()


def _no_start(how: str) -> RuntimeError:
    return RuntimeError(f"a helper process {how} before any began; its own message is above")


def _serve(pipe: Connection, function: Callable[..., Any]) -> None:
    """What a helper does: jobs in, signs and answers out."""
    end_with_parent()
    pipe.send(("ready", None))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            message = "answer", function(job, lambda news: pipe.send(("sign", news)))
        except OSError as error:
            message = "error", error
        except Exception:  # an error of any class has to be carried over, and not all can be
            message = "error", RuntimeError(f"a helper process failed:\n{traceback.format_exc()}")
        pipe.send(message)
