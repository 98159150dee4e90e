"""Folders that appear complete or not at all, whatever kills the process that makes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def built_aside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its name, and the place of a folder there, when the block succeeds.

    It always has the same name, so the next attempt clears away what a killed one left.
    """
    with owned(partial_of(path)) as building:
        recover(path, building)
        clear(building)
        content = building / "new"
        content.mkdir()
        try:
            yield content
            install(content, path, building)
        finally:
            shutil.rmtree(building)


def partial_of(path: Path) -> Path:
    """The folder in which `path` is being made."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """A folder, made when it is not there, that no other process works in; ValueError when one does."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is at work in {str(folder)!r}; wait for it, or end it") from None
            # The owner before may have removed the folder with the file between our opening and locking it.
            if (folder / "lock").exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock")):
                yield folder
                return


def clear(folder: Path) -> None:
    """Empties an owned folder."""
    for entry in folder.iterdir():
        if entry.name != "lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def install(content: Path, path: Path, aside: Path) -> None:
    """Gives a folder its name; what had the name until then is removed, or put back by `recover` after a kill."""
    if path.exists():
        os.replace(path, aside / "old")
    os.replace(content, path)
    shutil.rmtree(aside / "old", ignore_errors=True)


def recover(path: Path, aside: Path) -> None:
    """Puts back what a killed `install` had moved away."""
    old = aside / "old"
    if old.exists() and not path.exists():
        os.replace(old, path)
