"""EgoSummary and Ego4D-HCap: minutes of first-person video and a summary, with the short clips that lie inside.

| split | rows | files in `root` |
|---|---|---|
| train | about 100 thousand summaries of some five minutes | egosummary_full.csv, from the HierVL page |
| videos_train, videos_val | long videos, about eight thousand with test | videos_train.pkl, videos_val.pkl |
| segments_train, segments_val | segments of some three minutes | segments_train.pkl, segments_val.pkl |
| clips_train, clips_val | clips of a few seconds | clips_train.pkl, clips_val.pkl |
| videos_train_pseudo, segments_train_pseudo | told by a language model | the same name with .pkl |

The pickles are Ego4D-HCap, from the Video ReCap page. Their long videos are a test of retrieval (LongVideoRetrieval):
`text` chooses what each is asked for by, its "summary" or the descriptions of its "segments" as one paragraph.

With narrations=True, split train also reads summary_clips_hierarchy_full.json, which gives each summary the narrated
clips inside it: `clip_texts`, `clip_starts`, `clip_ends`, `clip_verbs` and `clip_nouns` have an entry for each clip and
are empty where a summary has none. As in the authors' code the summary's own sentence is what it is looked up by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vidlang.data.clips import ClipTable
from vidlang.datasets import egoclip
from vidlang.datasets._files import field, number, parse_ids, read_json, read_pickle
from vidlang.datasets._tables import Rows, cached, checked_parts, choose, published
from vidlang.datasets._texts import items, naming, paragraph, texts

SUMMARIES, HIERARCHY = "egosummary_full.csv", "summary_clips_hierarchy_full.json"
PSEUDO = ("videos_train_pseudo", "segments_train_pseudo")
SPLITS = (
    "train",
    *(f"{what}_{part}" for what in ("videos", "segments", "clips") for part in ("train", "val")),
    *PSEUDO,
)
TEXTS = ("summary", "segments")
HIERVL = "EgoSummary's files are on the HierVL page"
HCAP = "Ego4D-HCap's pickles are on the Video ReCap page"
Part = tuple[pa.Table, np.ndarray]


def load(
    split: str,
    *,
    root: str,
    store: str,
    narrations: bool = False,
    text: str = "summary",
    group_seconds: float = 60.0,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """The rows of a split; train and clips_* are in the form of EgoClip, with its groups."""
    choose("split of EgoSummary", split, SPLITS)
    choose("text of a long video", text, TEXTS)
    kind = split.split("_")[0]
    if narrations and kind != "train":
        raise ValueError(f"narrations=True is for train, split {split!r} has no such choice")
    if text != "summary" and kind != "videos":
        raise ValueError(f"text={text!r} is for videos, split {split!r} has no such choice")
    names = [SUMMARIES, HIERARCHY][: 1 + narrations] if kind == "train" else [f"{split}.pkl"]
    sources = [published(root, name, origin=HIERVL if kind == "train" else HCAP) for name in names]
    name, group = naming(video_name), egoclip.grouping(store, group_seconds)

    def make() -> ClipTable | Iterator[pa.Table]:
        if kind in ("videos", "segments"):
            return _long(sources[0], kind, text, name).table(store, bad_clips)
        path, what = sources[0], "row" if kind == "train" else "item"
        rows = (
            egoclip.narrations(path, video_name, group)
            if kind == "train"
            else egoclip.tuples(path, video_name, group, False)
        )
        rows = _with_clips(rows, sources[1]) if narrations else rows
        return checked_parts(rows, store, bad_clips, lambda row: f"{path}, {what} {row}")

    options = {"narrations": narrations, "text": text, "group_seconds": group_seconds, "video_name": video_name}
    return cached("egosummary", sources, {**options, "split": split, "bad_clips": bad_clips}, store, make)


def _long(path: Path, kind: str, text: str, name: Callable[[str], str]) -> Rows:
    """Rows of long videos or segments: pickled lists of objects, of which some tell no seconds."""
    rows = Rows(path)
    for place, where, _, record in items(read_pickle(path), list, path):
        if kind == "segments":
            told = field(record, "segment_description", str, where)
        elif text == "summary":
            told = field(record, "video_summary", str, where)
        else:
            told = paragraph(texts(record, "segment_descriptions", where), " ")
        start = number(record, "start_sec", where) if "start_sec" in record else 0.0
        end = number(record, "end_sec", where) if "end_sec" in record else None
        rows.add(place, video=name(field(record, "vid", str, where)), start=start, end=end, texts=[told])
    return rows


def _with_clips(parts: Iterable[Part], path: Path) -> Iterator[Part]:
    """The summaries with the clips inside them."""
    found = field({"content": read_json(path)}, "content", dict, str(path))
    inside = {summary: _clips(clips, f"{path}, summary {summary[:40]!r}") for summary, clips in found.items()}
    nothing: dict[str, list[Any]] = {name: [] for name in CLIPS}
    for table, number_R in parts:
        clips_R = [inside.get(told[0], nothing) for told in table.column("texts").to_pylist()]
        for column, kind in CLIPS.items():
            table = table.append_column(column, pa.array([clips[column] for clips in clips_R], kind))
        yield table, number_R


CLIPS = {
    "clip_texts": pa.list_(pa.string()),
    "clip_starts": pa.list_(pa.float64()),
    "clip_ends": pa.list_(pa.float64()),
    "clip_verbs": pa.list_(pa.list_(pa.int32())),
    "clip_nouns": pa.list_(pa.list_(pa.int32())),
}


def _clips(record: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """The clips of one summary, a list for each column."""
    clips = {
        "clip_texts": texts(record, "clip_text", where),
        "clip_starts": field(record, "clip_start", list, where),
        "clip_ends": field(record, "clip_end", list, where),
        "clip_verbs": field(record, "tag_verb", list, where),
        "clip_nouns": field(record, "tag_noun", list, where),
    }
    lengths = {name: len(values) for name, values in clips.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: the lists of its clips must have the same length, found {lengths}")
    for name in ("clip_starts", "clip_ends"):
        clips[name] = [number({name: value}, name, where) for value in clips[name]]
    for name in ("clip_verbs", "clip_nouns"):
        clips[name] = [parse_ids(str(value), f"{where}: {name}") for value in clips[name]]
    return clips
