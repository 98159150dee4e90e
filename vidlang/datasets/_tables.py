"""What the readers of published annotations share: values read with errors that name the place, tables made once.

A reader turns published files into rows; `checked` holds them against the chunk store, and `cached` keeps the result
as an Arrow file beside the annotations, so that the next start maps it into memory instead of parsing again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from vidlang.core.config import did_you_mean, fingerprint
from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable

BAD_CLIPS = ("error", "drop")
CACHE = "VIDLANG_CACHE"
# Raise it when the same files give other tables.
VERSION = 1


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
        row = {"video": video, "start": float(start), "end": np.nan if end is None else float(end), "texts": texts}
        row |= more
        if self.places and row.keys() != self.columns.keys():
            raise TypeError(f"a row has the columns {list(row)}, the rows before it {list(self.columns)}")
        for name, value in row.items():
            self.columns.setdefault(name, []).append(value)
        self.places.append(place)

    def table(self, store: str | Path, bad_clips: str) -> ClipTable:
        """All rows, checked against the store."""
        if not self.places:
            raise ValueError(f"{self.path} has no clips for what was asked")
        columns = dict(self.columns)
        # A missing end is filled in by `checked`; until then it must not look like a mistake.
        arrow = {name: pa.array(values, type=ClipTable.type_of(name)) for name, values in columns.items()}
        return checked(pa.table(arrow), store, bad_clips, lambda row: f"{self.path}, {self.places[row]}")


def checked(table: pa.Table, store: str | Path, bad_clips: str, place: Callable[[int], str]) -> ClipTable:
    """The clips with the store that holds their videos; ends that are NaN become the end of the video.

    A clip of a video that the store lacks, or one that starts beyond its video's end, is an error that names its
    `place`, or is left out and counted where `bad_clips` is "drop". An end beyond the video is left as published.
    """
    choose("bad_clips", bad_clips, BAD_CLIPS)
    opened = open_store(store)
    known = pa.array(opened.videos, pa.string())
    duration_V = np.array([opened.info(video).duration for video in opened.videos])
    row_R = pc.fill_null(pc.index_in(table.column("video"), value_set=known), -1).to_numpy()
    start_R, end_R = table.column("start").to_numpy(), table.column("end").to_numpy()
    duration_R = np.where(row_R >= 0, duration_V[row_R], np.inf)
    end_R = np.where(np.isnan(end_R), duration_R, end_R)
    unknown_R, beyond_R, turned_R = row_R < 0, start_R >= duration_R, ~((start_R >= 0) & (start_R < end_R))
    if (bad_R := unknown_R | beyond_R | turned_R).any():
        row = int(np.argmax(bad_R))
        video = table.column("video")[row].as_py()
        clip = f"{start_R[row]:g} to {end_R[row]:g} s of video {video!r}"
        if unknown_R[row]:
            hint = did_you_mean(video, opened.videos) if len(opened) <= 10_000 else ""
            reason = f"video {video!r} is not in the chunk store {str(store)!r}{hint}; precut it"
        elif turned_R[row] and not beyond_R[row]:
            reason = f"the clip {clip} is none: 0 <= start < end is needed"
        else:
            reason = f"the clip {clip} starts after the video's end at {duration_R[row]:g} s"
        counts = f"{int(unknown_R.sum())} clips of unknown videos, {int((bad_R & ~unknown_R).sum())} without a moment"
        if bad_clips == "error" or bad_R.all():
            raise ValueError(f"{place(row)}: {reason}, or leave such clips out with bad_clips='drop' ({counts})")
        logging.warning("Left out of %d clips: %s; the first is %s: %s.", len(table), counts, place(row), reason)
    end = pa.array(np.where(bad_R, start_R, end_R))
    table = table.set_column(table.column_names.index("end"), "end", end).filter(pa.array(~bad_R))
    return ClipTable(table, store=store)


def cached(
    name: str, sources: Sequence[Path], options: Mapping[str, Any], store: str | Path, make: Callable[[], ClipTable]
) -> ClipTable:
    """What `make()` gives, from a file where the same sources, options and store gave it before."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    content = open_store(store).content_hash
    key = fingerprint({"version": VERSION, "name": name, "sources": stats, "store": [str(store), content], **options})
    folder = _cache_folder(sources[0].parent)
    path = folder / f"{name}-{key}.arrow"
    if not path.exists():
        with _lock(folder / f".{path.name}.lock"):
            if not path.exists():  # another process may have made it while this one waited
                make().save(path)
    return ClipTable.open(path)


def _cache_folder(beside: Path) -> Path:
    """Where tables are kept: $VIDLANG_CACHE, else .vidlang beside the annotations, else a temporary folder."""
    if CACHE in os.environ:
        folder = Path(os.environ[CACHE])
    elif os.access(beside, os.W_OK):
        folder = beside / ".vidlang"
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
