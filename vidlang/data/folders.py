"""Folders that appear complete or not at all, whatever kills the process that makes them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

# What tells that a working folder is ours; its last entry but the lock to go.
RUN = "run.json"
# All that is ever made in a working folder, and so all that is ever deleted in one, in this order.
NAMES = (
    *("spool", "parts", "lines", "store", "new", "old", "reopened", "sent.json", "journal.jsonl", "journal.part"),
    *("inputs.jsonl", "inputs.jsonl.part", f"{RUN}.part", RUN),
)


@contextlib.contextmanager
def built_aside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its name, and the place of a folder there, when the block succeeds.

    It always has the same name, so the next attempt clears away what a killed one left.
    """
    path = real(path)
    with owned(partial_of(path)) as building:
        recover(path, building)
        clear(building)
        (building / RUN).write_text(json.dumps({"settings": {}, "inputs": ""}))
        content = building / "new"
        content.mkdir()
        try:
            yield content
            install(content, path, building)
        finally:
            remove(building)


def real(path: Path) -> Path:
    """The folder that a link stands for; it, not the link, is replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def partial_of(path: Path) -> Path:
    """The folder in which `path` is being made."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """A working folder, made when it is not there, that no other process works in.

    ValueError when one does, or when the folder holds what is not ours.
    """
    while True:
        check_ours(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(folder / "lock", "a")
        except FileNotFoundError:  # its owner has just removed it
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is at work in {str(folder)!r}; wait for it, or end it") from None
            # The owner before may have removed the folder with the file between our opening and locking it.
            if (folder / "lock").exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(folder / "lock")):
                yield folder
                return


def check_ours(folder: Path) -> None:
    """Raises unless a folder is absent, empty, or one that an earlier run worked in."""
    if not folder.exists() or is_begun(folder):
        return
    # What may be there before run.json is.
    ours = {"lock", "inputs.jsonl.part", f"{RUN}.part"}
    if not folder.is_dir() or any(entry.name not in ours for entry in folder.iterdir()):
        raise ValueError(f"{str(folder)!r} holds other files; name a new or empty folder with --work")


def is_begun(folder: Path) -> bool:
    """Whether a run has begun in a working folder."""
    try:
        run = json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(run, dict) and {"settings", "inputs"} <= run.keys()


def clear(folder: Path) -> None:
    """Deletes all that was made in an owned folder, and nothing else."""
    for name in NAMES:
        entry = folder / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def remove(folder: Path, *, itself: bool = True) -> None:
    """Deletes all that was made in an owned folder, and, unless others put something into it, the folder `itself`."""
    clear(folder)
    (folder / "lock").unlink(missing_ok=True)
    if not itself:
        return
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def check_apart(work: Path, folders: Iterable[str | Path], files: Iterable[str | Path] = ()) -> None:
    """Raises when a working folder is one of these folders, contains one or one of the files, or lies in a folder."""
    here = os.path.realpath(work)
    for folder in folders:
        there = os.path.realpath(folder)
        if os.path.commonpath([here, there]) in (here, there):
            raise ValueError(f"{str(work)!r} and {str(folder)!r} lie in each other; name another folder with --work")
    for parent in {os.path.dirname(os.path.abspath(file)) for file in files}:
        if os.path.commonpath([here, os.path.realpath(parent)]) == here:
            raise ValueError(f"{str(work)!r} contains videos that are to be cut; name another folder with --work")


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
