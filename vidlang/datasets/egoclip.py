"""EgoClip: short clips of Ego4D with their narrations, as written by people and as a language model multiplied them.

| split | rows | file in `root` |
|---|---|---|
| train | 3,847,723 | egoclip.csv (tabs, in spite of its name), from the EgoVLP page |
| lavila_train, lavila_val | about 4.0 million in train | ego4d_train.pkl, ego4d_val.pkl, from the LaViLa page |
| rephraser | the clips of lavila_train, told in several ways | ego4d_train.rephraser.no_punkt_top3.pkl, same page |
| narrator | more clips, up to ten captions each | ego4d_train.narrator_63690737.return_10.pkl, same page |
| lavila | rephraser and narrator, one after the other: 35 million captions | both |

Videos are called by their Ego4D uid; `video_name` says otherwise, see `_texts.naming`. Clips of one video whose
narrations fall in the same `group_seconds` seconds are one `group`; the pickles tell no time of narration, so the
middle of the clip counts. Only the csv has `verbs` (118 classes) and `nouns` (582); `kind` is the pass of narration
that a row comes from. Narrator's captions have `nll`, how unlikely each is to the model.

As in the authors' code, rows of the csv that cannot be read are left out (they are counted), and seconds before the
video's start are its start. A row of several captions is one clip: training draws one of them each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.datasets._columns import stream_csv
from vidlang.datasets._files import read_pickle, short
from vidlang.datasets._tables import cached, checked_parts, choose, published
from vidlang.datasets._texts import naming, naming_column, one_text

FILES = {
    "train": "egoclip.csv",
    "lavila_train": "ego4d_train.pkl",
    "lavila_val": "ego4d_val.pkl",
    "rephraser": "ego4d_train.rephraser.no_punkt_top3.pkl",
    "narrator": "ego4d_train.narrator_63690737.return_10.pkl",
}
SPLITS = (*FILES, "lavila")
ORIGIN = "egoclip.csv is on the EgoVLP page, the pickles are on the LaViLa page"
COLUMNS = {
    "video_uid": str,
    "narration_source": str,
    "narration_time": float,
    "clip_start": float,
    "clip_end": float,
    "clip_text": str,
    "tag_verb": list,
    "tag_noun": list,
}
# Rows of a pickle that are turned into columns at once.
ROWS = 1 << 17
Part = tuple[pa.Table, np.ndarray]
Grouping = Callable[[pa.ChunkedArray, np.ndarray], np.ndarray]


def load(
    split: str,
    *,
    root: str,
    store: str,
    group_seconds: float = 60.0,
    video_name: str = "{video}",
    bad_clips: str = "error",
    file: str = "",
) -> ClipTable:
    """The clips of a split; `file` is read in place of the published one, in the same format (not for lavila)."""
    choose("split of EgoClip", split, SPLITS)
    options: dict[str, Any] = {"group_seconds": group_seconds, "video_name": video_name, "bad_clips": bad_clips}
    if split == "lavila":
        if file:
            raise ValueError("split 'lavila' reads two files; load rephraser and narrator to choose each `file`")
        parts = ("rephraser", "narrator")
        return ClipTable.concatenate([load(part, root=root, store=store, **options) for part in parts])
    path = published(root, file or FILES[split], origin=ORIGIN)
    naming(video_name)  # says what is wrong with it before a large file is read
    group = grouping(store, group_seconds)
    # Two files of one mixture have the same columns, whether or not their captions were scored.
    scored = split in ("rephraser", "narrator")

    def make() -> Iterator[pa.Table]:
        if split == "train":
            return checked_parts(
                narrations(path, video_name, group), store, bad_clips, lambda row: f"{path}, row {row}"
            )
        return checked_parts(
            tuples(path, video_name, group, scored), store, bad_clips, lambda row: f"{path}, item {row}"
        )

    return cached("egoclip", [path], {**options, "split": split}, store, make)


def grouping(store: str, group_seconds: float) -> Grouping:
    """Numbers for (video, run of seconds), the same for all tables of one store."""
    if not group_seconds > 0:
        raise ValueError(f"group_seconds must be more than 0, found {group_seconds}")
    opened = open_store(store)

    def numbers(video: pa.ChunkedArray, seconds_R: np.ndarray) -> np.ndarray:
        run_R = np.floor(seconds_R / group_seconds).astype(np.int64)
        # A video that the store lacks has place -1; its rows do not stay.
        return (opened.videos.find_many(video) << 32) + run_R

    return numbers


def narrations(path: Path, video_name: str, group: Grouping) -> Iterator[Part]:
    """Parts of a csv in EgoClip's format, with the rows of the file."""
    for read, number_R in stream_csv(path, COLUMNS, delimiter="\t"):
        video = naming_column(video_name, read.column("video_uid"))
        yield (
            pa.table(
                {
                    "video": video,
                    "start": pc.max_element_wise(read.column("clip_start"), 0.0),
                    "end": pc.max_element_wise(read.column("clip_end"), 0.0),
                    "texts": one_text(read.column("clip_text")),
                    "verbs": read.column("tag_verb"),
                    "nouns": read.column("tag_noun"),
                    "group": group(video, read.column("narration_time").to_numpy()),
                    "kind": read.column("narration_source"),
                }
            ),
            number_R,
        )


def tuples(path: Path, video_name: str, group: Grouping, scored: bool) -> Iterator[Part]:
    """Parts of a pickled list of (uid, start, end, caption or captions) and perhaps the captions' nll."""
    rows = read_pickle(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of (video, start, end, caption), found {short(rows)}")
    for first in range(0, len(rows), ROWS):
        taken = rows[first : first + ROWS]
        # The objects of a row take far more memory than its columns, and are not needed any more.
        rows[first : first + ROWS] = [None] * len(taken)
        uid, start, end, texts, nll = zip(
            *(_row(row, path, number) for number, row in enumerate(taken, first)), strict=True
        )
        video = naming_column(video_name, pa.chunked_array([uid], pa.string()))
        start_R, end_R = np.array(start, np.float64), np.array(end, np.float64)
        columns = {
            "video": video,
            "start": start_R,
            "end": end_R,
            "texts": pa.array(texts, pa.list_(pa.string())),
            "group": group(video, (start_R + end_R) / 2),
        }
        if scored:
            columns["nll"] = pa.array(nll, pa.list_(pa.float32()))
        yield pa.table(columns), np.arange(first, first + len(taken))
    if not rows:
        raise ValueError(f"{path} has no rows")


def _row(row: Any, path: Path, number: int) -> tuple[str, float, float, list[str], list[float] | None]:
    try:
        uid, start, end, caption, *rest = row
        texts = [caption] if isinstance(caption, str) else list(caption)
        fits = isinstance(uid, str) and all(isinstance(text, str) for text in texts) and len(rest) <= 1
        nll = [float(value) for value in rest[0]] if rest else None
        if fits and math.isfinite(start) and math.isfinite(end) and (nll is None or len(nll) == len(texts)):
            return uid, float(start), float(end), texts, nll
    except (TypeError, ValueError):
        fits = False
    raise ValueError(f"{path}, item {number}: must be (video, start, end, caption or captions), found {short(row)}")
