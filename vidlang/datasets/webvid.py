"""WebVid: stock videos of 18 s with the caption that their page had. Withdrawn by its makers in February 2024.

| split | videos | file in `root` |
|---|---|---|
| train, val | 2.5 M, 5,000 | results_2M_train.csv, results_2M_val.csv |
| train_10m, val_10m | 10.7 M, 5,000 | results_10M_train.csv, results_10M_val.csv |

The files (columns videoid, contentUrl, duration, page_dir, name) came from the dataset's pages. Its download script
puts a video at PAGE_DIR/VIDEOID.mp4, and so it is called in the store, less the suffix. Not every copy is complete:
bad_clips="drop" leaves out what the store lacks. Frozen validates on 1,000 clips of val, drawn by chance and not named.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import numbered_csv
from vidlang.datasets._tables import cached, checked, choose, published
from vidlang.datasets._texts import naming_column, one_text

FILES = {
    "train": "results_2M_train.csv",
    "val": "results_2M_val.csv",
    "train_10m": "results_10M_train.csv",
    "val_10m": "results_10M_val.csv",
}
ORIGIN = "WebVid's csv files came from the dataset's pages"


def load(
    split: str, *, root: str, store: str, video_name: str = "{page_dir}/{video}", bad_clips: str = "error"
) -> ClipTable:
    """Whole videos with their caption; `id` is the published videoid. Columns only, no Python object per row."""
    choose("split of WebVid", split, list(FILES))
    path = published(root, FILES[split], origin=ORIGIN)
    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        table, number_R = _columns(path, video_name)
        return checked(table, store, bad_clips, lambda row: f"{path}, row {row}", number_R)

    return cached("webvid", [path], options, store, make)


def _columns(path: Path, video_name: str) -> tuple[pa.Table, np.ndarray]:
    table, number_R = numbered_csv(path, {"videoid": str, "page_dir": str, "name": str})
    identity = table.column("videoid")
    columns = {
        "video": naming_column(video_name, identity, page_dir=table.column("page_dir")),
        "start": pa.array(np.zeros(len(table))),
        "end": pa.array(np.full(len(table), np.nan)),  # filled in by `checked`
        "texts": one_text(table.column("name")),
        "id": identity,
    }
    return pa.table(columns), number_R
