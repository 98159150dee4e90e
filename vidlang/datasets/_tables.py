"""What the readers of published annotations share: values read with errors that name the place, tables made once.

A reader turns published files into rows; `checked` holds them against the chunk store, and `cached` keeps the result
as an Arrow file beside the annotations, so that the next start maps it into memory instead of parsing again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from vidlang.core.config import did_you_mean, fingerprint
from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.clips import ClipTable
from vidlang.datasets._files import short

BAD_CLIPS = ("error", "drop")
CACHE = "VIDLANG_CACHE"
BESIDE = ".vidlang"
# Seconds that a clip may end after its video before it is told: published ends are rounded, and videos re-encoded.
FAR = 1.0
# What Arrow raises for a Python value that is none of a type.
_NO_VALUE = (pa.ArrowException, ValueError, OverflowError)
# Raise it when the same files give other tables.
VERSION = 2


def choose(what: str, value: str, known: Sequence[str]) -> str:
    """The value, or an error that lists what there is."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}{did_you_mean(value, known)}; there are: {', '.join(known)}")
    return value


def published(root: str | Path, *names: str, origin: str) -> Path:
    """The first of these files that lies in `root`; `origin` tells where people get it."""
    for name in names:
        if (path := Path(root) / name).is_file():
            return path
    raise ValueError(f"there is no {' or '.join(names)} in {str(root)!r}; {origin}")


class Rows:
    """Rows of a table that is small enough for Python, each with the place in the published file it comes from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: list[str] = []
        self.columns: dict[str, list[Any]] = {}

    def add(
        self, place: str, *, video: str, start: float = 0, end: float | None = None, texts: Sequence[str], **more: Any
    ) -> None:
        """One clip; `end=None` means the end of its video, which the store knows."""
        try:
            seconds = {"start": float(start), "end": np.nan if end is None else float(end)}
        except OverflowError:  # of a whole number
            raise ValueError(f"{self.path}, {place}: its start and end must be numbers below 1e308") from None
        row = {"video": video, **seconds, "texts": texts, **more}
        if self.places and row.keys() != self.columns.keys():
            raise TypeError(f"a row has the columns {list(row)}, the rows before it {list(self.columns)}")
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)
        self.places.append(place)

    def table(self, store: str | Path, bad_clips: str) -> ClipTable:
        """All rows, checked against the store."""
        if not self.places:
            raise ValueError(f"{self.path} has no clips for what was asked")
        # A missing end is filled in by `checked`; until then it must not look like a mistake.
        arrow = {name: self._array(name, values) for name, values in self.columns.items()}
        return checked(pa.table(arrow), store, bad_clips, lambda row: f"{self.path}, {self.places[row]}")

    def _array(self, name: str, values: list[Any]) -> pa.Array:
        kind = ClipTable.type_of(name)
        try:
            return pa.array(values, type=kind)
        except _NO_VALUE:
            for place, value in zip(self.places, values, strict=True):
                try:
                    pa.array([value], type=kind)
                except _NO_VALUE as error:
                    where = f"{self.path}, {place}: {name!r}"
                    raise ValueError(f"{where} must fit the type {kind or 'text'}, found {short(value)}") from error
            raise


def checked(
    table: pa.Table,
    store: str | Path,
    bad_clips: str,
    place: Callable[[int], str],
    number_R: np.ndarray | None = None,
) -> ClipTable:
    """The clips with the store that holds their videos; ends that are NaN become the end of the video.

    A clip of a video that the store lacks, or one that starts beyond its video's end, is an error that names its
    `place`, or is left out and counted where `bad_clips` is "drop". An end beyond the video is left as published; if
    far beyond, it is counted in a warning. `place` gets the `number_R` of a row, or its place in the table.
    """
    number_R = np.arange(len(table)) if number_R is None else number_R
    parts = checked_parts([(table, number_R)], store, bad_clips, place)
    return ClipTable(pa.concat_tables(list(parts)), store=store)


def checked_parts(
    parts: Iterable[tuple[pa.Table, np.ndarray]], store: str | Path, bad_clips: str, place: Callable[[int], str]
) -> Iterator[pa.Table]:
    """As `checked`, for tables that are too big for memory: each part comes with the number that `place` gets of each
    of its rows."""
    choose("bad_clips", bad_clips, BAD_CLIPS)
    opened = open_store(store)
    duration_V = opened.infos()["duration"]
    kept, unknown, wrong, first = 0, 0, 0, ""
    beyond = _Beyond()
    for table, number_R in parts:
        row_R = opened.videos.find_many(table.column("video"))
        start_R, end_R = (table.column(name).to_numpy() for name in ("start", "end"))
        duration_R = np.where(row_R >= 0, duration_V[row_R], np.inf)
        end_R = np.where(np.isnan(end_R), duration_R, end_R)
        good_R = (row_R >= 0) & (start_R >= 0) & (start_R < np.minimum(end_R, duration_R)) & np.isfinite(end_R)
        if not good_R.all():
            row = int(np.argmin(good_R))
            unknown += int((row_R < 0).sum())
            wrong += int((~good_R & (row_R >= 0)).sum())
            clip = (table.column("video")[row].as_py(), float(start_R[row]), float(end_R[row]))
            first = first or f"{place(int(number_R[row]))}: {_mistake(opened, clip, row_R[row], duration_R[row])}"
            if bad_clips == "error":
                raise ValueError(_left_out(first, unknown, wrong))
        far_R = good_R & (end_R > duration_R + FAR)
        if far_R.any():
            row = int(np.argmax(far_R))
            end = f"a clip ends at {end_R[row]:g} s, its video {table.column('video')[row].as_py()!r}"
            beyond.add(int(far_R.sum()), f"{place(int(number_R[row]))}: {end} at {duration_R[row]:g} s")
        table = table.set_column(table.column_names.index("end"), "end", pa.array(end_R)).filter(pa.array(good_R))
        kept += len(table)
        yield table
    if first and not kept:
        raise ValueError(_left_out(first, unknown, wrong))
    beyond.report(kept)
    if first:
        logging.warning("Left out %d clips of %d: %s", unknown + wrong, unknown + wrong + kept, first)


class _Beyond:
    """Clips that end long after their video: some of these are published, many mean that the times are no seconds."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def add(self, count: int, words: str) -> None:
        self.count += count
        self.first = self.first or words

    def report(self, kept: int) -> None:
        if self.count:
            words = "%d clips of %d end more than %g s after their video; are all times in seconds? %s"
            logging.warning(words, self.count, kept, FAR, self.first)


def _left_out(first: str, unknown: int, wrong: int) -> str:
    counts = f"{unknown} clips of unknown videos and {wrong} without a moment so far"
    return f"{first}, or leave such clips out with bad_clips='drop' ({counts})"


def _mistake(opened: ChunkStore, clip: tuple[str, float, float], row: int, duration: float) -> str:
    video, start, end = clip
    if row < 0:
        hint = did_you_mean(video, opened.videos) if len(opened) <= 10_000 else ""
        return f"video {video!r} is not in the chunk store {str(opened.path)!r}{hint}; precut it"
    words = f"the clip {start:g} to {end:g} s of video {video!r}"
    if start >= duration:
        return f"{words} starts after the video's end at {duration:g} s"
    return f"{words} is none: 0 <= start < end is needed"


def cached(
    name: str,
    sources: Sequence[Path],
    options: Mapping[str, Any],
    store: str | Path,
    make: Callable[[], ClipTable | Iterable[pa.Table]],
) -> ClipTable:
    """What `make()` gives, from a file where the same sources, options and store gave it before.

    Made tables stay until somebody deletes their folder: a run may still send the path of an older one to new worker
    processes, and over a network a mapped file that is deleted takes its readers down.
    """
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    content = open_store(store).content_hash
    key = fingerprint({"version": VERSION, "name": name, "sources": stats, "store": [str(store), content], **options})
    file = f"{name}-{key}.arrow"
    kept = sources[0].parent / BESIDE / file
    # Made by somebody who may write there, used by all.
    path = kept if kept.exists() else _cache_folder(sources[0].parent) / file
    if not path.exists():
        with _lock(path.with_name(f".{file}.lock")):
            if not path.exists():  # another process may have made it while this one waited
                logging.info("Reading %s; the table is kept in %s for the next time.", sources[0], path)
                made = make()
                made.save(path) if isinstance(made, ClipTable) else ClipTable.write(
                    path, _some(made, sources[0]), store
                )
    return ClipTable.open(path)


def _some(tables: Iterable[pa.Table], path: Path) -> Iterator[pa.Table]:
    """The tables; an error where they have no row."""
    empty = True
    for table in tables:
        empty = empty and not len(table)
        yield table
    if empty:
        raise ValueError(f"{path} has no clips for what was asked")


def _cache_folder(beside: Path) -> Path:
    """Where tables are kept: $VIDLANG_CACHE, else .vidlang beside the annotations, else a temporary folder."""
    if CACHE in os.environ:
        folder = Path(os.environ[CACHE])
    elif os.access(beside, os.W_OK):
        folder = beside / BESIDE
    else:
        folder = Path(tempfile.gettempdir()) / f"vidlang-{os.getuid()}"
        logging.warning("%s cannot be written to; its tables are kept in %s. $%s moves them.", beside, folder, CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds the file; a killed holder frees it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
