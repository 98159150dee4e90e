"""Diving48: 16,997 dives of 48 classes, which differ in takeoff, somersaults, twists and position only.

| split | dives | file in `root` |
|---|---|---|
| train | 15,027 | Diving48_V2_train.json |
| test | 1,970 | Diving48_V2_test.json |

The files, with the classes in Diving48_vocab.json, come from the dataset's pages. These are the corrected labels (V2);
those of V1 are noisy, and results on them are not comparable. A video is one dive and is read whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import index, items, naming, texts

SPLITS = ("train", "test")
ORIGIN = "Diving48's annotations (V2) come from the dataset's pages"


def load(split: str, *, root: str, store: str, video_name: str = "{video}", bad_clips: str = "error") -> ClipTable:
    """Whole videos with `label` and its class's name as text; `id` is the video's name."""
    choose("split of Diving48", split, SPLITS)
    path, name = published(root, f"Diving48_V2_{split}.json", origin=ORIGIN), naming(video_name)
    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        return _dives(path, class_names(root), name).table(store, bad_clips)

    return cached("diving48", [path, _vocabulary(root)], options, store, make)


def class_names(root: str) -> list[str]:
    """Names by label: takeoff, somersault, twist and position, such as "Back, 15som, 05Twis, FREE"."""
    path = _vocabulary(root)
    parts = items(read_json(path), list, path, "class")
    return [", ".join(texts({"class": names}, "class", where)) for _, where, _, names in parts]


def _vocabulary(root: str) -> Path:
    return published(root, "Diving48_vocab.json", origin=ORIGIN)


def _dives(path: Path, names: list[str], name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    for place, where, _, dive in items(read_json(path), list, path):
        label, video = index(dive, "label", len(names), where), field(dive, "vid_name", str, where)
        rows.add(place, video=name(video), texts=[names[label]], label=label, id=video)
    return rows
