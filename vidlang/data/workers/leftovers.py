"""What killed programs leave on a machine, and how the next program there tells that nobody uses it any more.

Where all processes of a training are killed at once, as by a scheduler that is out of patience, none is left to free
shared memory or temporary files. So whoever makes some holds a lock on a file beside them. The kernel lets go of it
when the process ends, however it ends, and tells even processes of other containers, to which its number says nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from absl import logging

_LOCK = "-lock"


class Claim:
    """Says that all paths with this beginning are in use, until it is released or the process ends."""

    def __init__(self, beginning: str) -> None:
        sweep(Path(beginning).parent)
        self._path = beginning + _LOCK
        self._handle: int | None = None
        try:
            while self._handle is None:
                self._handle = _locked(self._path, os.O_CREAT)
        except OSError as error:  # file systems of clusters may know no locks
            Path(self._path).unlink(missing_ok=True)
            logging.warning("What is left in %s if this program is killed stays there: %s.", self._path, error)

    def release(self) -> None:
        """Gives the claim up; what it was for should be gone by now."""
        if self._handle is not None:
            Path(self._path).unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def sweep(folder: Path) -> None:
    """Removes from a folder what those have left whose claims have ended with their processes."""
    freed = 0
    for lock in folder.glob(f"vidlang-*{_LOCK}"):
        try:
            handle = _locked(str(lock))
        except OSError:  # another user's, or removed by whoever looked at the same time
            continue
        if handle is None:
            continue
        freed += sum(map(_remove, folder.glob(f"{lock.name.removesuffix(_LOCK)}*")))
        os.close(handle)
    if freed:
        logging.info("Removed %.1f MB from %s that killed programs had left there.", freed / 1e6, folder)


def _locked(path: str, flags: int = 0) -> int | None:
    """A handle of the file with its lock; None where another holds that, or the file is another one by now."""
    handle, held = os.open(path, os.O_RDWR | flags, 0o600), False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the two calls above the file may have been removed by a sweep.
        held = os.path.samestat(os.fstat(handle), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        held = False
    finally:
        if not held:
            os.close(handle)
    return handle if held else None


def _remove(path: Path) -> int:
    """Removes a file or a folder; returns how many bytes it had."""
    try:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
    except FileNotFoundError:
        return 0
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return size
