"""YouCook2: 2,000 cooking videos of five minutes, each cut into the steps of a recipe with one sentence a step.

| split | videos | segments | file in `root` |
|---|---|---|---|
| train | 1,333 | 10,337 | youcookii_annotations_trainval.json |
| val | 457 | 3,492 | youcookii_annotations_trainval.json |
| val3350 | | 3,350 | validation_youcook.csv |

The first file comes from the dataset's pages, the second from MIL-NCE's (howto100m). Three protocols: retrieval and
captioning of the published segments (clips="segments"; LongViViT on val, MIL-NCE's tables on val3350), and summaries
of whole videos (clips="videos"), whose text is all sentences of a video with `joiner` between them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import csv_rows
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import items, naming, paragraph, span

SUBSETS = {"train": "training", "val": "validation"}
SPLITS = (*SUBSETS, "val3350")
CLIPS = ("segments", "videos")
ORIGIN = "YouCook2's annotations come from its pages, validation_youcook.csv from MIL-NCE's"


def load(
    split: str,
    *,
    root: str,
    store: str,
    clips: str = "segments",
    joiner: str = " ",
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Segments or whole videos; `id` is VIDEO_NUMBER of a segment (of val3350: its row) or the video's name.

    `video_name` may hold {subset} and {recipe_type} too: the published videos lie in such folders.
    """
    choose("split of YouCook2", split, SPLITS)
    choose("clips of YouCook2", clips, CLIPS)
    if split == "val3350" and clips == "videos":
        raise ValueError("val3350 has segments only; take split='val' for whole videos")
    file = "validation_youcook.csv" if split == "val3350" else "youcookii_annotations_trainval.json"
    path = published(root, file, origin=ORIGIN)
    options = {"split": split, "clips": clips, "joiner": joiner, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        if split == "val3350":
            return _csv(path, naming(video_name)).table(store, bad_clips)
        name = naming(video_name, "subset", "recipe_type")
        return _database(path, split, joiner if clips == "videos" else None, name).table(store, bad_clips)

    return cached("youcook2", [path], options, store, make)


def _database(path: Path, split: str, joiner: str | None, name: Callable[..., str]) -> Rows:
    rows = Rows(path)
    content = field(read_json(path), "database", dict, str(path))
    for place, where, key, entry in items(content, dict, path, "video"):
        subset = field(entry, "subset", str, where)
        if subset != SUBSETS[split]:
            continue
        video = name(key, subset=subset, recipe_type=field(entry, "recipe_type", str, where, ""))
        sentences = []
        for number, segment in enumerate(field(entry, "annotations", list, where)):
            inside = f"{where}, annotation {number}"
            sentences.append(field(segment, "sentence", str, inside))
            if joiner is None:
                start, end = span(field(segment, "segment", list, inside), f"{inside}: 'segment'")
                identity = f"{key}_{field(segment, 'id', int, inside)}"
                rows.add(
                    f"{place}, annotation {number}",
                    video=video,
                    start=start,
                    end=end,
                    texts=sentences[-1:],
                    id=identity,
                )
        if joiner is not None:
            rows.add(place, video=video, texts=[paragraph(sentences, joiner)], id=key)
    return rows


def _csv(path: Path, name: Callable[..., str]) -> Rows:
    rows = Rows(path)
    for number, row in csv_rows(path, {"video_id": str, "start": float, "end": float, "text": str}):
        clip = {"start": row["start"], "end": row["end"], "texts": [row["text"]]}
        rows.add(f"row {number}", video=name(row["video_id"]), **clip, id=str(number))
    return rows
