"""What is encoded of a table of clips, and where it is kept: two ways to cut clips.

    segments   each clip in S equal segments, S vectors; many clips in a file (AdaVid-Agg, HierVL)
    windows    each video clip in windows of one length, as many vectors as fit; a file for each (GroundNLQ)

A piece is what one file holds. Which clips that are depends on the table and these settings alone, never on who
encodes it or what was done before, so the same piece always comes out the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable

LENGTH = re.compile(r"(\d+(?:\.\d+)?) ?(frames?|seconds?|s)")
# A window may end this much after its clip, in shares of a step: bounds and rates are rounded numbers.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Piece:
    """One file: the clips to encode for it are `rows` of `Cuts.clips`, from `first` on."""

    file: str
    first: int
    rows: int


@dataclass(frozen=True)
class Cuts:
    """A table cut up: `clips` are encoded, `each` vectors from each; `index` says where those of a clip then are."""

    settings: Mapping[str, Any]
    index: pa.Table
    clips: ClipTable
    pieces: tuple[Piece, ...]
    each: int


def segments(table: ClipTable, *, count: int, shard_rows: int) -> Cuts:
    """Every row of the table in `count` segments, and the vectors of `shard_rows` rows in a file."""
    for name, value in {"segments": count, "shard_rows": shard_rows}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    rows = len(table)
    shard_N, place_N = np.divmod(np.arange(rows), shard_rows)
    length_N = (table.column("end") - table.column("start")) / count
    files = [_numbered(shard) for shard in range(-(-rows // shard_rows))]
    index = _index(table, pa.array(files).take(pa.array(shard_N)), place_N * count, np.full(rows, count), length_N)
    pieces = [
        Piece(file, shard * shard_rows, min(shard_rows, rows - shard * shard_rows)) for shard, file in enumerate(files)
    ]
    settings = {"layout": "segments", "segments": count, "shard_rows": shard_rows}
    return Cuts(_described(settings, index), index, table, tuple(pieces), count)


def windows(table: ClipTable, *, window: str, stride: str, name_column: str = "video") -> Cuts:
    """Each different clip of the table in windows: as many as fit, each `stride` after the one before.

    window, stride: "16 frames" of the video, or "0.5 seconds". A clip shorter than a window is one. Files are called
    as `name_column` calls the clips.
    """
    if table.store is None:
        raise ValueError("The clip table names no chunk store, and windows are cut from videos; give it one.")
    store = open_store(table.store)
    clips = _distinct(table)
    files = [quote(str(name), safe=" ") for name in clips.column(name_column)]
    _check_names(files, name_column)
    starts, ends, counts, spans, steps = [], [], [], [], []
    for video, start, end in zip(*(clips.column(name) for name in ("video", "start", "end")), strict=True):
        info = store.info(video)
        end = min(end, info.duration) if start < info.duration else end
        spans.append(_seconds(window, "window", info.fps))
        steps.append(_seconds(stride, "stride", info.fps))
        counts.append(max(0, math.floor((end - start - spans[-1]) / steps[-1] + _ROUNDING)) + 1)
        starts.append(start + steps[-1] * np.arange(counts[-1]))
        ends.append(np.minimum(starts[-1] + spans[-1], end))
    first_C = np.cumsum([0, *counts])
    columns: dict[str, Any] = {
        "video": np.repeat(np.asarray(clips.column("video"), object), counts),
        "start": np.concatenate(starts),
        "end": np.concatenate(ends),
        "texts": [[]] * int(first_C[-1]),
    }
    found = ClipTable.from_columns(columns, store=table.store)
    index = _index(clips, pa.array(files), np.zeros(len(clips)), np.array(counts), np.array(spans), np.array(steps))
    pieces = [Piece(file, int(first), count) for file, first, count in zip(files, first_C[:-1], counts, strict=True)]
    settings = {"layout": "windows", "window": window, "stride": stride}
    return Cuts(_described(settings, index), index, found, tuple(pieces), 1)


def keys(video: pa.ChunkedArray, start_N: np.ndarray, end_N: np.ndarray, names: pa.Array) -> np.ndarray:
    """int64 [N, 3] that tells clips apart: place of the video in `names` (-1: none), microseconds."""
    video_N = pc.fill_null(pc.index_in(video, value_set=names), -1).to_numpy()
    moments = (np.round(seconds * 1e6).astype(np.int64) for seconds in (start_N, end_N))
    return np.stack([video_N.astype(np.int64), *moments], axis=1)


def _numbered(shard: int) -> str:
    return f"{shard:05d}"


def _distinct(table: ClipTable) -> ClipTable:
    """The first row of each clip, in the order of the table."""
    names = pc.unique(table.arrow("video"))
    found = keys(table.arrow("video"), table.column("start"), table.column("end"), names)
    _, first = np.unique(found, axis=0, return_index=True)
    return table.select(np.sort(first))


def _seconds(length: str, what: str, fps: float) -> float:
    match = LENGTH.fullmatch(length)
    number = float(match[1]) if match else 0.0
    if match is None or number == 0:
        raise ValueError(f"{what} is {length!r}; it is a length such as '16 frames' or '0.5 seconds'")
    return number / fps if match[2].startswith("f") else number


def _check_names(files: list[str], column: str) -> None:
    seen: set[str] = set()
    for file in files:
        if file in seen or not file or file.startswith("."):
            found = "the name of two clips at different seconds" if file in seen else "no name for a file"
            raise ValueError(
                f"column {column!r} has {file!r}, {found}; give a column in which each clip has its own (name_column)"
            )
        seen.add(file)


def _index(
    table: ClipTable,
    file: pa.Array,
    offset_N: np.ndarray,
    count_N: np.ndarray,
    span_N: np.ndarray,
    step_N: np.ndarray | None = None,
) -> pa.Table:
    """One row a clip. Vector i of a clip shows `span` seconds from start + i * step on."""
    columns = {
        **{name: table.arrow(name).combine_chunks() for name in ("video", "start", "end")},
        "file": file,
        "offset": pa.array(offset_N.astype(np.int64)),
        "count": pa.array(count_N.astype(np.int32)),
        "span": pa.array(span_N, pa.float64()),
        "step": pa.array(span_N if step_N is None else step_N, pa.float64()),
    }
    return pa.table(columns)


def _described(settings: Mapping[str, Any], index: pa.Table) -> dict[str, Any]:
    """The settings, and what tells these clips from others."""
    digest = hashlib.sha256()
    for column in index.columns:
        values = column.combine_chunks()
        if pa.types.is_string(column.type):
            values = values.dictionary_encode()
            digest.update(repr(values.dictionary.to_pylist()).encode())
            values = values.indices
        digest.update(values.to_numpy().tobytes())
    return {**settings, "rows": len(index), "index": digest.hexdigest()[:16]}
