"""Kinetics-400 (and 600, 700): YouTube clips of 10 s with one class of human action each.

| split | clips of Kinetics-400 | file in `root` |
|---|---|---|
| train | 240,436 that are still online (some papers had 241,258) | train.csv |
| val | 19,796 | val.csv (or validate.csv) |

Such a file is one of two. The official one (from the dataset's pages) has a header with label, youtube_id, time_start
and time_end; a clip is called YOUTUBEID_000010_000020, and {label} may be part of `video_name`. Or it is a list of
files as people make it after their download, a line each: "PATH LABEL" (VideoMAE) or "PATH FRAMES LABEL" (AVION), with
spaces or commas between. Its labels are numbers, most often of the classes in alphabetical order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import csv_rows, read_csv
from vidlang.datasets._files import open_text
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import class_ids, naming

FILES = {"train": ("train.csv",), "val": ("val.csv", "validate.csv")}
NAMES = "label_map_k400.txt"
ORIGIN = "Kinetics' csv files come from its pages; lists of files are made from a download"
CLASSES = "one class a line, as mmaction2 publishes for Kinetics-400"
_LINE = re.compile(r"(?P<path>.+?)[ ,\t]+(?:\d+[ ,\t]+)?(?P<label>\d+)")


def load(
    split: str,
    *,
    root: str,
    store: str,
    file: str = "",
    prefix: str = "",
    named: bool = False,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Whole clips with `label`; `id` is the published name or path.

    `file` is another file in `root`. In a list, `prefix` is what its paths begin with and the store's names do not,
    such as "/data/k400/"; with `named`, texts hold the class from `class_names`, else they are empty. With an official
    file, texts hold the class, and labels are its places in `class_names`.
    """
    choose("split of Kinetics", split, list(FILES))
    path = published(root, *((file,) if file else FILES[split]), origin=ORIGIN)
    official = _is_official(path)
    sources = [path, _classes(root)] if official or named else [path]
    options = {"split": split, "prefix": prefix, "named": named, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        names = class_names(root) if official or named else []
        if official:
            return _official(path, names, naming(video_name, "label")).table(store, bad_clips)
        return _listed(path, prefix, names, naming(video_name)).table(store, bad_clips)

    return cached("kinetics", sources, options, store, make)


def class_names(root: str) -> list[str]:
    """Names by label: the lines of label_map_k400.txt, else the classes of an official train.csv in their order."""
    path = _classes(root)
    if path.name == NAMES:
        with open_text(path) as file:
            return file.read().splitlines()
    return sorted(set(read_csv(path, {"label": str}).column("label").to_pylist()))


def _classes(root: str) -> Path:
    path = published(root, NAMES, "train.csv", origin=CLASSES)
    if path.name != NAMES and not _is_official(path):
        raise ValueError(f"{path} is a list of files, which has no names of classes; put {NAMES} there: {CLASSES}")
    return path


def _is_official(path: Path) -> bool:
    with open_text(path) as file:
        return "youtube_id" in file.readline()


def _official(path: Path, names: list[str], name: Callable[..., str]) -> Rows:
    label_of = class_ids(names)
    rows = Rows(path)
    columns = {"label": str, "youtube_id": str, "time_start": int, "time_end": int}
    for number, row in csv_rows(path, columns):
        clip = f"{row['youtube_id']}_{row['time_start']:06d}_{row['time_end']:06d}"
        label = label_of(row["label"])
        if label < 0:
            raise ValueError(f"{path}, row {number}, column 'label': there is no class {row['label']!r}")
        video = name(clip, label=row["label"])
        rows.add(f"row {number}", video=video, texts=[row["label"]], label=label, id=clip)
    return rows


def _listed(path: Path, prefix: str, names: list[str], name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ValueError(f"{where}: expected 'PATH LABEL' or 'PATH FRAMES LABEL', found {line.strip()!r}")
            video, label = match["path"], int(match["label"])
            if names and label >= len(names):
                raise ValueError(f"{where}: label {label} is none of {len(names)} classes")
            if not video.startswith(prefix):
                raise ValueError(f"{where}: the path {video!r} does not begin with the prefix {prefix!r}")
            texts = [names[label]] if names else []
            rows.add(f"line {number}", video=name(video.removeprefix(prefix)), texts=texts, label=label, id=video)
    return rows
