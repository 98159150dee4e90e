"""Which videos to cut: a folder, a pattern, a list in a file, pairs in memory, here or on an object store.

A video's name in the store is its path inside the folder (or behind the fixed part of the pattern) without the suffix,
the file's name without the suffix in a list, or what the list says. Files of a folder that would share a name, such as
a.mp4 and a.mkv, keep their suffixes. Videos come ordered by name.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlang.data.cutting.finding import SUFFIXES, find_remote, fixed_part, match, walk
from vidlang.data.cutting.lists import LISTS, read_list
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.remote import PACKAGES, is_address

COPY_BYTES = 8 << 20
LONGEST_PART = 251  # bytes of a part of a name: file systems take 255, and ".mp4" may come behind it
ATTEMPTS, FIRST_PAUSE = 4, 1.0  # of reading from an object store, each pause twice the one before


@dataclass(frozen=True)
class Input:
    """A video file by its name in the store; `state` tells whether the file is the one of an earlier run."""

    name: str
    path: str
    state: tuple[int, int] | None  # length in bytes and time of change; None where that is not known

    @property
    def size(self) -> int:
        """Bytes of the file, 0 when not known."""
        return self.state[0] if self.state else 0


def find_inputs(inputs: str | Path | Sequence[tuple[str, str | Path]]) -> list[Input]:
    """All videos of a folder, a pattern, a list file, one file, or (name, path) pairs."""
    if not isinstance(inputs, str | Path):
        pairs = [(name, os.fspath(path)) for name, path in inputs]
    elif is_address(str(inputs)):
        pairs = _remote(str(inputs))
    else:
        pairs = _local(str(inputs))
    # A file whose name is no text gets a name that is; it is listed as failed when its turn comes.
    pairs = [(name if _is_text(path) else printable(name), path) for name, path in pairs]
    videos = [Input(name, path, None if is_address(path) else _state(path)) for name, path in sorted(pairs)]
    _check(videos)
    return videos


def _local(place: str) -> list[tuple[str, str]]:
    path = Path(place)
    if path.suffix.lower() in LISTS and path.is_file():
        return read_list(path.read_bytes(), place, os.path.dirname(place))
    if path.is_file():
        return [(path.stem, place)]
    if path.is_dir():
        found = list(walk(place))
        if not found:
            suffixes = ", ".join(sorted(SUFFIXES))
            raise ValueError(f"there are no videos in {place!r}: no file outside of chunk stores ends in {suffixes}")
        return _named(found, place)
    if glob.has_magic(place):
        found = match(place)
        if not found:
            raise ValueError(f"no file matches the pattern {place!r}, outside of chunk stores")
        return _named(found, fixed_part(place))
    raise ValueError(f"there is no folder {place!r}, nor a file, a list or a pattern of files")


def _remote(address: str) -> list[tuple[str, str]]:
    system, path = connect(address)
    try:
        if os.path.splitext(path)[1].lower() in LISTS:
            return read_list(system.cat_file(path), address, posixpath.dirname(address))
        found, root = find_remote(system, path)
    except OSError as error:
        raise ValueError(f"the videos at {address!r} cannot be listed: {error}") from error
    if not found:
        raise ValueError(f"there are no videos at {address!r}, outside of chunk stores")
    return [(name, system.unstrip_protocol(file)) for name, file in _named(found, root)]


def _named(files: list[str], root: str) -> list[tuple[str, str]]:
    inside = [posixpath.relpath(file, root or ".") for file in files]
    short = [posixpath.splitext(path)[0] for path in inside]
    shared = {name for name, count in Counter(short).items() if count > 1}
    return [(path if name in shared else name, file) for path, name, file in zip(inside, short, files, strict=True)]


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a missing file is listed as failed when its turn comes
        return None
    return found.st_size, found.st_mtime_ns


def _check(videos: list[Input]) -> None:
    if not videos:
        raise ValueError("there are no videos to cut: the list is empty")
    for video in videos:
        parts = video.name.split("/")
        if {"", ".", ".."} & {*parts} or "\0" in video.name + video.path or not _is_text(video.name):
            raise ValueError(
                f"{video.name!r} cannot be the name of a video ({video.path!r}); choose another, without empty parts, "
                "'.' and '..'"
            )
        if max(len(part.encode()) for part in parts) > LONGEST_PART:
            raise ValueError(
                f"{video.name!r} cannot be the name of a video ({video.path!r}): a part of it is longer than the "
                f"{LONGEST_PART} bytes that the name of a file has room for; rename it"
            )
    for one, other in itertools.pairwise(videos):
        if one.name == other.name:
            raise ValueError(
                f"{one.path!r} and {other.path!r} would both be called {one.name!r}; rename one, or give names in a "
                "csv list with the columns path and name"
            )


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; on disk it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """A path that any terminal takes."""
    return path.encode("utf-8", "backslashreplace").decode()


def connect(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = PACKAGES.get(address.partition("://")[0], "fsspec")
        raise ValueError(
            f"{address!r} needs the package {package}, which is not installed; pip install 'vidlang[remote]'"
        ) from error
    except ValueError as error:
        raise ValueError(f"{address!r} cannot be read: {error}") from error


@contextlib.contextmanager
def local_copy(path: str, target: Path, sign: Callable[[Any], None]) -> Iterator[Path]:
    """A video file on this machine: itself, or a copy at `target` for the time of the block."""
    if not _is_text(path):
        raise BrokenVideo(f"the file name {path!r} is not UTF-8 text; rename the file", "unsupported")
    if not is_address(path):
        yield Path(path)
        return
    try:
        for attempt in range(ATTEMPTS):
            try:
                _fetch(path, target, sign)
                break
            except FileNotFoundError as error:
                raise BrokenVideo(f"there is no file {path!r}", "missing") from error
            except DiskError:
                raise
            except Exception as error:  # each client of an object store has errors of its own
                if attempt == ATTEMPTS - 1:
                    raise BrokenVideo(f"cannot fetch {path!r}: {error}", "unreadable") from error
                time.sleep(FIRST_PAUSE * 2**attempt)
        yield target
    finally:
        target.unlink(missing_ok=True)


class DiskError(OSError):
    """This machine's own disk failed, or is full: no fault of the video."""


def _fetch(path: str, target: Path, sign: Callable[[Any], None]) -> None:
    system, inside = connect(path)
    with system.open(inside, "rb") as source, writing(target) as file:
        while block := source.read(COPY_BYTES):
            with disk():
                file.write(block)
            sign(0.0)
    if (size := system.info(inside)["size"]) != target.stat().st_size:
        raise OSError(f"{size} bytes were promised, {target.stat().st_size} came")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    """A new file; what fails in making it is a DiskError."""
    with disk():
        file = open(path, "wb")
    try:
        yield file
    finally:
        with disk():
            file.close()


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """Turns what fails in the block into a DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(error.errno, error.strerror, error.filename) from error
