"""VATEX: 10 s clips of Kinetics-600 videos with ten English and ten Chinese captions each.

| split | clips | file in `root` |
|---|---|---|
| train | 25,991 | vatex_training_v1.0.json |
| val | 3,000 | vatex_validation_v1.0.json |
| test | 6,000 | vatex_public_test_english_v1.1.json (English only) |
| private | 6,278 | vatex_private_test_without_annotations.json (no captions) |

The files come from the dataset's pages. A clip is called by its video and seconds, as in Ptf_2VRj-V0_000122_000132;
so are the files of most copies, and their names in the store. LongViViT retrieves on all of val and captions test;
many other papers retrieve on halves of val instead, which are not comparable and not read here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import items, naming, texts

FILES = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_public_test_english_v1.1.json",
    "private": "vatex_private_test_without_annotations.json",
}
KEYS = {"english": "enCap", "chinese": "chCap"}
ORIGIN = "VATEX's annotations come from the dataset's pages"


def load(
    split: str,
    *,
    root: str,
    store: str,
    language: str = "english",
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """The whole clips with all their captions in one language; `id` is the published name.

    Clips of split private have no texts: they can be captioned, and not trained on.
    """
    choose("split of VATEX", split, list(FILES))
    key = "" if split == "private" else KEYS[choose("language of VATEX", language, list(KEYS))]
    path, name = published(root, FILES[split], origin=ORIGIN), naming(video_name)
    options = {"split": split, "key": key, "video_name": video_name, "bad_clips": bad_clips}
    return cached("vatex", [path], options, store, lambda: _clips(path, key, name).table(store, bad_clips))


def _clips(path: Path, key: str, name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    for place, where, _, clip in items(read_json(path), list, path):
        video = field(clip, "videoID", str, where)
        rows.add(place, video=name(video), texts=texts(clip, key, where) if key else [], id=video)
    return rows
