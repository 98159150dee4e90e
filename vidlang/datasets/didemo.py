"""DiDeMo: Flickr videos of half a minute, with descriptions of moments that several people placed in segments of 5 s.

| split | descriptions | videos | file in `root` |
|---|---|---|---|
| train | 33,005 | 8,395 | train_data.json |
| val | 4,180 | 1,065 | val_data.json |
| test | 4,021 | 1,004 | test_data.json |

The files come from the dataset's repository (LisaAnne/LocalizingMoments). Two protocols: clips="videos" is paragraph
retrieval (Singularity, SViTT): all descriptions of a video, joined in the order of the file, and its first 30 s, which
is all that the annotators saw. clips="moments" has a row for each description, with the moment that most people chose;
of moments chosen equally often, the one that comes first in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import bare, first_end, items, naming, paragraph, span

SPLITS = ("train", "val", "test")
CLIPS = ("videos", "moments")
SEGMENT_SECONDS = 5
ORIGIN = "DiDeMo's annotations come from the dataset's repository"


def load(
    split: str,
    *,
    root: str,
    store: str,
    clips: str = "videos",
    joiner: str = " ",
    first_seconds: float = 30,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Whole videos (`id` is the published name less its suffix) or moments (`id` is the published annotation_id).

    `first_seconds` is of whole videos only; 0 keeps everything. Moments are left as published: the last may end after
    its video.
    """
    choose("split of DiDeMo", split, SPLITS)
    choose("clips of DiDeMo", clips, CLIPS)
    path, name, end = published(root, f"{split}_data.json", origin=ORIGIN), naming(video_name), first_end(first_seconds)
    options = {"split": split, "clips": clips, "joiner": joiner, "first_seconds": first_seconds}
    options |= {"video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        rows = _moments(path, name) if clips == "moments" else _videos(path, name, joiner, end)
        return rows.table(store, bad_clips)

    return cached("didemo", [path], options, store, make)


def _videos(path: Path, name: Callable[[str], str], joiner: str, end: float | None) -> Rows:
    places: dict[str, str] = {}
    descriptions: dict[str, list[str]] = {}
    for place, where, _, item in items(read_json(path), list, path):
        video = field(item, "video", str, where)
        places.setdefault(video, place)
        descriptions.setdefault(video, []).append(field(item, "description", str, where))
    rows = Rows(path)
    for video, place in places.items():
        text = paragraph(descriptions[video], joiner)
        rows.add(place, video=name(video), end=end, texts=[text], id=bare(video))
    return rows


def _moments(path: Path, name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    for place, where, _, item in items(read_json(path), list, path):
        first, last = _chosen(item, where)
        rows.add(
            place,
            video=name(field(item, "video", str, where)),
            start=first * SEGMENT_SECONDS,
            end=(last + 1) * SEGMENT_SECONDS,
            texts=[field(item, "description", str, where)],
            id=str(field(item, "annotation_id", int, where)),
        )
    return rows


def _chosen(item: Any, where: str) -> tuple[int, int]:
    """First and last segment of the moment that most people chose."""
    times = [span(time, f"{where}: a moment of 'times'", int) for time in field(item, "times", list, where)]
    if not times:
        raise ValueError(f"{where}: 'times' has no moment")
    # The most common comes first, and a counter keeps the order of the file among equals.
    return Counter(times).most_common(1)[0][0]
