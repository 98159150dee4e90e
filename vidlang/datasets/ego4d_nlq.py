"""Ego4D natural language queries: when, in eight minutes of first-person video, is the answer to be seen?

| split | queries | file in `root` |
|---|---|---|
| train, val | version 2: 13,847 and 4,552 | nlq_train.json, nlq_val.json, from Ego4D's annotations |
| test | 4,004, without spans | nlq_test_unannotated.json, same place |
| groundnlq_train, groundnlq_val, groundnlq_test | the same queries | ego4d_nlq_train_v2.jsonl ... (GroundNLQ's page) |
| narrations | EgoClip's narrations as queries | format_unique_pretrain_data.jsonl, made by GroundNLQ's script |

`start` and `end` say where to look, `span_start` and `span_end` (not in test) what was marked as the answer; `texts` is
the query and `id` "annotation_uid_place", as GroundNLQ calls it. `clip` is the uid of the eight-minute clip, which
results are sent in with. With within="videos" a row names the Ego4D video that the clip is cut from and counts its
seconds; with within="clips" the clips themselves are in the store, and the GroundNLQ files know only those.

As in the authors' code, entries without a query are left out; they are counted. `kind` is the query's template. A
span that starts before the clip starts with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, number, read_json, read_lines
from vidlang.datasets._tables import Rows, cached, checked_parts, choose, published
from vidlang.datasets._texts import naming, span

FILES = {
    "train": "nlq_train.json",
    "val": "nlq_val.json",
    "test": "nlq_test_unannotated.json",
    "groundnlq_train": "ego4d_nlq_train_v2.jsonl",
    "groundnlq_val": "ego4d_nlq_val_v2.jsonl",
    "groundnlq_test": "ego4d_nlq_test_v2.jsonl",
    "narrations": "format_unique_pretrain_data.jsonl",
}
WITHIN = ("videos", "clips")
ORIGIN = "the json files are among Ego4D's annotations, the jsonl files on GroundNLQ's page"
# Lines of a jsonl file that are turned into columns at once.
LINES = 1 << 16


def load(
    split: str,
    *,
    root: str,
    store: str,
    within: str = "videos",
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """One row a query."""
    choose("split of Ego4D NLQ", split, list(FILES))
    choose("within", within, WITHIN)
    path, name = published(root, FILES[split], origin=ORIGIN), naming(video_name)
    lines = path.suffix == ".jsonl"
    if lines and within != "clips":
        raise ValueError(f"split {split!r} knows only clips: say within='clips', with a store of the clips")

    def make() -> ClipTable | Iterator[pa.Table]:
        if lines:
            parts = _lines(path, split != "groundnlq_test", name)
            return checked_parts(parts, store, bad_clips, lambda line: f"{path}, line {line}")
        return _official(path, split != "test", within, name).table(store, bad_clips)

    options = {"split": split, "within": within, "video_name": video_name, "bad_clips": bad_clips}
    return cached("ego4d_nlq", [path], options, store, make)


def _official(path: Path, answered: bool, within: str, name: Callable[[str], str]) -> Rows:
    rows, silent = Rows(path), 0
    for video, video_where, at_video in _inner(read_json(path), "videos", str(path)):
        for clip, clip_where, at_clip in _inner(video, "clips", video_where):
            uid = field(clip, "clip_uid", str, clip_where)
            if within == "clips":
                look: dict[str, Any] = {"video": name(uid), "start": 0.0, "end": None}
            else:
                look = {"video": name(field(video, "video_uid", str, video_where))}
                # Of some clips the start is published as a little less than 0.
                look["start"] = max(number(clip, "video_start_sec", clip_where), 0.0)
                look["end"] = number(clip, "video_end_sec", clip_where)
            for note, note_where, at_note in _inner(clip, "annotations", clip_where):
                annotation = field(note, "annotation_uid", str, note_where)
                for query, where, at_query in _inner(note, "language_queries", note_where):
                    if not query.get("query"):
                        silent += 1
                        continue
                    place = f"video {at_video}, clip {at_clip}, annotation {at_note}, query {at_query}"
                    rows.add(
                        place,
                        **look,
                        **(_answer(query, within, float(look["start"]), where) if answered else {}),
                        texts=[field(query, "query", str, where)],
                        id=f"{annotation}_{at_query}",
                        clip=uid,
                        kind=str(query.get("template") or ""),
                    )
    if silent:
        logging.warning("%s: left out %d entries without a query", path, silent)
    return rows


def _inner(record: Any, key: str, where: str) -> Iterator[tuple[Any, str, int]]:
    """(record, where, number) of each object in a list inside a record."""
    what = {"videos": "video", "clips": "clip", "annotations": "annotation", "language_queries": "query"}[key]
    for at, inner in enumerate(field(record, key, list, where)):
        place = f"{where}, {what} {at}"
        field({what: inner}, what, dict, place)
        yield inner, place, at


def _answer(query: Any, within: str, start: float, where: str) -> dict[str, Any]:
    """The marked seconds, of the video or of the clip."""
    prefix = "video" if within == "videos" else "clip"
    first, last = (number(query, f"{prefix}_{end}_sec", where) for end in ("start", "end"))
    return {"span_start": max(first, start), "span_end": last}


def _lines(path: Path, answered: bool, name: Callable[[str], str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Parts of a jsonl file; what a line must hold is said by the errors."""
    numbers: list[int] = []
    columns: dict[str, list[Any]] = {}
    for place, record in read_lines(path):
        for key, value in _line(record, f"{path}, {place}", answered, name).items():
            columns.setdefault(key, []).append(value)
        numbers.append(int(place.removeprefix("line ")))
        if len(numbers) == LINES:
            yield _part(columns), np.array(numbers)
            numbers, columns = [], {}
    if numbers:
        yield _part(columns), np.array(numbers)


def _part(columns: dict[str, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values, type=ClipTable.type_of(name)) for name, values in columns.items()})


def _line(record: Any, where: str, answered: bool, name: Callable[[str], str]) -> dict[str, Any]:
    text = "narration_query" if isinstance(record, dict) and "narration_query" in record else "query"
    clip = field(record, "video_id", str, where)
    row = {"video": name(clip), "start": 0.0, "end": number(record, "duration", where)}
    row |= {"texts": [field(record, text, str, where)], "id": field(record, "query_id", str, where), "clip": clip}
    row["kind"] = field(record, "query_type", str, where)
    if answered:
        spans = field(record, "timestamps", list, where)
        if len(spans) != 1:
            raise ValueError(f"{where}: 'timestamps' must hold one [start, end], found {len(spans)}")
        first, last = span(spans[0], f"{where}: 'timestamps'")
        row |= {"span_start": max(float(first), 0.0), "span_end": float(last)}
    return row
