"""MSR-VTT: 10,000 web clips with 20 captions each, for retrieval and captioning.

| split | clips | files in `root` |
|---|---|---|
| train, val, test | 6,513, 497, 2,990 | MSRVTT_data.json, or train_val_videodatainfo.json and test_videodatainfo.json |
| train7k, train9k | train + val; the same and test less test1k | as above, and MSRVTT_train.7k.csv or ...9k.csv |
| test1k | 1,000, one caption each ("1k-A", JSFusion) | MSRVTT_JSFUSION_test.csv |
| mc | 2,990, five captions to choose from ("MSRVTT-MC") | msrvtt_mc_test.json |

The annotations come from the dataset's authors, the csv files from the Collaborative Experts and CLIP4Clip pages and
the multiple choice from Singularity's, whose other lists `pairs_json` reads. The videos are files called video0.mp4
...; in the store their names are video0 ..., or what `video_name` makes of them (see `_texts.naming`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import csv_rows, read_csv
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import bare, index, items, naming, texts

SPLITS = ("train", "val", "test", "train7k", "train9k", "test1k", "mc")
ORIGIN = "MSR-VTT's annotations come from its authors, the 1k-A lists from the Collaborative Experts pages"
MC = "MSRVTT-MC's list comes from Singularity's annotations"


def load(split: str, *, root: str, store: str, video_name: str = "{video}", bad_clips: str = "error") -> ClipTable:
    """The whole clips of a split with their captions; `id` is the video's name.

    Split mc has `choices` and the right one's place, `answer`; its texts are the right choice.
    """
    choose("split of MSR-VTT", split, SPLITS)
    sources, name = _sources(Path(root), split), naming(video_name)
    read = {"test1k": _pairs, "mc": _choices}.get(split, _captions)
    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}
    return cached("msrvtt", sources, options, store, lambda: read(sources, split, name).table(store, bad_clips))


def _sources(root: Path, split: str) -> list[Path]:
    if split == "test1k":
        return [published(root, "MSRVTT_JSFUSION_test.csv", origin=ORIGIN)]
    if split == "mc":
        return [published(root, "msrvtt_mc_test.json", origin=MC)]
    names = ("test_videodatainfo.json",) if split == "test" else ("train_val_videodatainfo.json",)
    sources = [published(root, "MSRVTT_data.json", *names, origin=ORIGIN)]
    if split == "train9k" and sources[0].name != "MSRVTT_data.json":
        sources.append(published(root, "test_videodatainfo.json", origin=ORIGIN))
    if split in ("train7k", "train9k"):
        sources.append(published(root, f"MSRVTT_train.{split.removeprefix('train')}.csv", origin=ORIGIN))
    return sources


def _pairs(sources: list[Path], split: str, name: Callable[[str], str]) -> Rows:
    """One row for each pair of the 1k-A list."""
    rows = Rows(sources[0])
    for number, pair in csv_rows(rows.path, {"video_id": str, "sentence": str}):
        rows.add(f"row {number}", video=name(pair["video_id"]), texts=[pair["sentence"]], id=pair["video_id"])
    return rows


def _choices(sources: list[Path], split: str, name: Callable[[str], str]) -> Rows:
    """One row for each question of MSRVTT-MC."""
    rows = Rows(sources[0])
    for place, where, _, item in items(read_json(rows.path), list, rows.path):
        choices = texts(item, "caption", where)
        answer = index(item, "answer", len(choices), where)
        video = field(item, "video", str, where)
        right = [choices[answer]]
        rows.add(place, video=name(video), texts=right, id=bare(video), choices=choices, answer=answer)
    return rows


def _captions(sources: list[Path], split: str, name: Callable[[str], str]) -> Rows:
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
            found = field(video, "video_id", str, where)
            inside = found in listed if listed is not None else _split_of(video, where) == split
            if inside:
                if found not in captions:
                    raise ValueError(f"{where}: {found!r} has no sentence; is the file complete?")
                rows.add(f"video {number}", video=name(found), texts=captions[found], id=found)
    return rows


def _split_of(video: Any, where: str) -> str:
    """The split that a video says it is in; the authors write validate for val."""
    return {"validate": "val"}.get(found := field(video, "split", str, where), found)
