"""Helper processes that end when the one that started them does, however it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes: spawned, for the caller may already run the threads of an accelerator's runtime."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """To be called first in a helper process."""
    # Ctrl-C reaches the whole process group; the main process ends its helpers, without their tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A main process that is killed can end nobody; its helpers would wait for ever, and hold their memory.
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in helper processes only"
    parent.join()
    os._exit(1)
