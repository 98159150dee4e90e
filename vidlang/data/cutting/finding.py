"""The files below a folder or behind a pattern, here or on an object store, without what precut itself put there."""

from __future__ import annotations

import glob
import itertools
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm "
    ".wmv".split()
)
# What makes a folder a store, finished or not: a file, and keys that are in it. Others may use these names too.
MARKS = {"store.json": {"format_version"}, "run.json": {"settings", "inputs"}}
# Chunks in a spool on an object store: digest of the run, number of the video, number of the chunk.
SPOOLED = re.compile(r"(^|/)[0-9a-f]{16}/\d{7}/chunks/\d+\.mp4$")


def walk(folder: str) -> Iterator[str]:
    """The videos below a folder in order; stores, finished or not, and hidden files are left out.

    Folders behind links come last, so that a video which can be reached without one is; each is read once.
    """
    seen: set[str] = set()
    pending = [folder]
    while pending:
        links: list[str] = []
        for parent, folders, files in itertools.chain.from_iterable(os.walk(top, onerror=_unread) for top in pending):
            real = os.path.realpath(parent)
            if real in seen or (MARKS.keys() & {*files} and _left_out(parent, _reader(parent))):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            for name in sorted(files):
                if not name.startswith(".") and is_video(name):
                    yield os.path.join(parent, name)
        pending = links


def match(pattern: str) -> list[str]:
    """The files that match a pattern, in order, by the same rules; it says which suffixes."""
    root = fixed_part(pattern)
    files = (file for file in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(file))
    kept = _outside_stores(list(files), root, _reader)
    # "**" goes through links too, round and round where one points upwards.
    real = {folder: os.path.realpath(folder or ".") for folder in map(os.path.dirname, kept)}
    linked = {folder: _linked(folder, place, root) for folder, place in real.items()}
    first: dict[str, str] = {}
    for file in sorted(kept, key=lambda file: (linked[os.path.dirname(file)], file.count("/"), file)):
        first.setdefault(os.path.join(real[os.path.dirname(file)], os.path.basename(file)), file)
    return sorted(first.values())


def find_remote(system: Any, path: str) -> tuple[list[str], str]:
    """The videos of a folder or pattern on an object store by the same rules, and where their names begin."""
    if not glob.has_magic(path) and system.isfile(path):
        return [path], posixpath.dirname(path)
    if glob.has_magic(path):
        root = fixed_part(path)
        depth = None if "**" in path else path.count("/") - root.rstrip("/").count("/")
        there = {*system.find(root, maxdepth=depth)}
        files = [file for file in system.glob(path) if file in there]
    else:
        root, there = path, {*system.find(path)}
        files = [file for file in there if is_video(file)]

    def reader(folder: str) -> Callable[[str], bytes]:
        def read(name: str) -> bytes:
            file = posixpath.join(folder, name)
            if file not in there:
                raise FileNotFoundError(file)
            return bytes(system.cat_file(file))

        return read

    return [file for file in _outside_stores(files, root, reader) if not SPOOLED.search(file)], root


def is_video(name: str) -> bool:
    """Whether a file is called as videos are."""
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def fixed_part(pattern: str) -> str:
    """The folder in front of a pattern's first wildcard."""
    parts = pattern.split("/")
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1])
    return "/".join(fixed) or ("/" if pattern.startswith("/") else "")


def _outside_stores(files: list[str], root: str, reader: Callable[[str], Callable[[str], bytes]]) -> list[str]:
    """The files that have no store above them, up to `root`."""
    stop = root.rstrip("/")
    known: dict[str, bool] = {}

    def inside(folder: str) -> bool:
        if folder not in known:
            above = posixpath.dirname(folder)
            known[folder] = (folder != stop and above != folder and inside(above)) or _left_out(folder, reader(folder))
        return known[folder]

    return [file for file in files if not inside(posixpath.dirname(file))]


def _left_out(folder: str, read: Callable[[str], bytes]) -> bool:
    """Whether a folder is a store, finished or not; says so when it is."""
    for name, keys in MARKS.items():
        try:
            content = json.loads(read(name))
        except (OSError, ValueError, RecursionError):  # not there, or somebody else's
            continue
        if isinstance(content, dict) and keys <= content.keys():
            logging.warning("%r is left out: %s says that it is a chunk store or the work on one", folder, name)
            return True
    return False


def _reader(folder: str) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()

    return read


def _linked(folder: str, real: str, root: str) -> bool:
    """Whether a link lies between `root` and a folder that is really at `real`."""
    inside = os.path.relpath(folder or ".", root or ".")
    return real != os.path.normpath(os.path.join(os.path.realpath(root or "."), inside))


def _unread(error: OSError) -> None:
    logging.warning("The folder %r is left out: %s", error.filename, error.strerror)
