"""MSR-VTT: 10,000 web clips with 20 captions each, for retrieval and captioning.

| split | clips | files in `root` |
|---|---|---|
| train, val, test | 6,513, 497, 2,990 | MSRVTT_data.json, or train_val_videodatainfo.json and test_videodatainfo.json |
| train7k, train9k | train + val; the same and test less test1k | as above, and MSRVTT_train.7k.csv or ...9k.csv |
| test1k | 1,000, one caption each ("1k-A", JSFusion) | MSRVTT_JSFUSION_test.csv |

The annotations come from the dataset's authors and the csv files from the Collaborative Experts and CLIP4Clip pages.
The videos are files called video0.mp4 ...; in the store their names are video0 ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_csv, read_json
from vidlang.datasets._tables import Rows, cached, choose, published

SPLITS = ("train", "val", "test", "train7k", "train9k", "test1k")
ORIGIN = "MSR-VTT's annotations come from its authors, the 1k-A lists from the Collaborative Experts pages"


def load(split: str, *, root: str, store: str, bad_clips: str = "error") -> ClipTable:
    """The whole clips of a split with their captions; `id` is the video's name."""
    choose("split of MSR-VTT", split, SPLITS)
    sources = _sources(Path(root), split)

    def make() -> ClipTable:
        rows = _pairs(sources[0]) if split == "test1k" else _captions(sources, split)
        return rows.table(store, bad_clips)

    return cached("msrvtt", sources, {"split": split, "bad_clips": bad_clips}, store, make)


def _sources(root: Path, split: str) -> list[Path]:
    if split == "test1k":
        return [published(root, "MSRVTT_JSFUSION_test.csv", origin=ORIGIN)]
    names = ("test_videodatainfo.json",) if split == "test" else ("train_val_videodatainfo.json",)
    sources = [published(root, "MSRVTT_data.json", *names, origin=ORIGIN)]
    if split == "train9k" and sources[0].name != "MSRVTT_data.json":
        sources.append(published(root, "test_videodatainfo.json", origin=ORIGIN))
    if split in ("train7k", "train9k"):
        sources.append(published(root, f"MSRVTT_train.{split.removeprefix('train')}.csv", origin=ORIGIN))
    return sources


def _pairs(path: Path) -> Rows:
    """One row for each pair of the 1k-A list."""
    rows = Rows(path)
    table = read_csv(path, {"video_id": str, "sentence": str}).to_pylist()
    for number, pair in enumerate(table, start=2):
        rows.add(f"row {number}", video=pair["video_id"], texts=[pair["sentence"]], id=pair["video_id"])
    return rows


def _captions(sources: list[Path], split: str) -> Rows:
    """One row for each video of the split, with all its captions in the order of the file."""
    listed = None
    if sources[-1].suffix == ".csv":
        listed = set(read_csv(sources[-1], {"video_id": str}).column("video_id").to_pylist())
    rows = Rows(sources[0])
    for path in (path for path in sources if path.suffix == ".json"):
        content = read_json(path)
        captions: dict[str, list[str]] = {}
        for number, sentence in enumerate(field(content, "sentences", list, str(path))):
            where = f"{path}, sentence {number}"
            captions.setdefault(field(sentence, "video_id", str, where), []).append(
                field(sentence, "caption", str, where)
            )
        for number, video in enumerate(field(content, "videos", list, str(path))):
            where = f"{path}, video {number}"
            name = field(video, "video_id", str, where)
            inside = name in listed if listed is not None else _split_of(video, where) == split
            if inside:
                if name not in captions:
                    raise ValueError(f"{where}: {name!r} has no sentence; is the file complete?")
                rows.add(f"video {number}", video=name, texts=captions[name], id=name)
    return rows


def _split_of(video: Any, where: str) -> str:
    """The split that a video says it is in; the authors write validate for val."""
    return {"validate": "val"}.get(found := field(video, "split", str, where), found)
