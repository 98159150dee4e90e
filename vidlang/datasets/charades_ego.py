"""Charades-Ego as first-person models are fine-tuned and tested on it: narrated actions, and all actions of a video.

| split | rows | file in `root` |
|---|---|---|
| train | narrated actions of train | metadata_train.csv (tabs), from the EgoVLP page |
| lavila_train | the same, filtered | metadata_filtered_train.pkl, from the LaViLa page |
| test | videos in first person, of the test set | CharadesEgo_v1_test_only1st.csv, from the dataset's page |

The dataset's own csv files, of either view, are read by `charades`. Here `texts` is a narration (train) or the script
(test). `label` is an action's class, of 157, where metadata_train.csv tells it; `labels` of test are all classes that
occur in the whole video, for the mean average precision that is reported. `id` is the video's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vidlang.data.clips import ClipTable
from vidlang.datasets import egoclip
from vidlang.datasets._csv import csv_rows
from vidlang.datasets._tables import Rows, cached, checked_parts, choose, published
from vidlang.datasets._texts import naming

FILES = {
    "train": "metadata_train.csv",
    "lavila_train": "metadata_filtered_train.pkl",
    "test": "CharadesEgo_v1_test_only1st.csv",
}
CLASSES = 157
ORIGIN = "metadata_train.csv is on the EgoVLP page, the pickle on the LaViLa page, the others on the dataset's page"


def load(split: str, *, root: str, store: str, video_name: str = "{video}", bad_clips: str = "error") -> ClipTable:
    """One row a narrated action, or for test a whole video."""
    choose("split of Charades-Ego", split, list(FILES))
    path, name = published(root, FILES[split], origin=ORIGIN), naming(video_name)

    def make() -> ClipTable | Iterator[pa.Table]:
        if split == "lavila_train":
            parts = egoclip.tuples(path, video_name, egoclip.grouping(store, 60.0), False)
            return checked_parts(_without_groups(parts), store, bad_clips, lambda row: f"{path}, item {row}")
        return (_narrated if split == "train" else _videos)(path, name).table(store, bad_clips)

    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}
    return cached("charades_ego", [path], options, store, make)


def _without_groups(parts: Iterator[tuple[pa.Table, np.ndarray]]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    # Runs of a minute are scenes of Ego4D; these videos last half a minute.
    for table, number_R in parts:
        yield table.drop_columns(["group"]), number_R


def _narrated(path: Path, name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    wanted = {"id": str, "t_start": float, "t_end": float, "narration": str}
    for number, row in csv_rows(path, wanted, optional={"cls": str}, delimiter="\t"):
        more: dict[str, Any] = {"start": row["t_start"], "end": row["t_end"], "id": row["id"]}
        if "cls" in row:
            more["label"] = _label(row["cls"], f"{path}, row {number}, column 'cls'")
        rows.add(f"row {number}", video=name(row["id"]), texts=[row["narration"]], **more)
    return rows


def _videos(path: Path, name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    for number, row in csv_rows(path, {"id": str, "script": str, "actions": str}):
        where = f"{path}, row {number}, column 'actions'"
        # "c092 11.90 21.20;c147 0.00 12.60", or nothing.
        codes = [action.split(" ")[0] for action in row["actions"].split(";") if action]
        labels = sorted({_label(code, where) for code in codes})
        rows.add(f"row {number}", video=name(row["id"]), texts=[row["script"]], id=row["id"], labels=labels)
    return rows


def _label(code: str, where: str) -> int:
    """The class of a code such as c092."""
    if not re.fullmatch(r"c?\d{1,3}", code.strip()) or int(code.strip().lstrip("c")) >= CLASSES:
        raise ValueError(f"{where}: must be classes c000 to c{CLASSES - 1}, found {code!r}")
    return int(code.strip().lstrip("c"))
