"""VideoCC: clips of YouTube videos, each with the caption of an image that looks like it.

| split | clips | file in `root` |
|---|---|---|
| train | some millions (LongViViT tells 3 M in its text and 7 M in a table) | video_cc_public.csv |

The file comes from the dataset's repository (google-research-datasets/videoCC-data). It has no header: a link to
YouTube, start and end of the clip in microseconds, and the caption. In the store a video is called by its YouTube id,
or what `video_name` makes of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import numbered_csv
from vidlang.datasets._tables import cached, checked, choose, published
from vidlang.datasets._texts import naming_column, one_text

COLUMNS = ("url", "start", "end", "caption")
ORIGIN = "VideoCC's list comes from the dataset's repository"
_IDENTITY = r"(?:[?&]v=|youtu\.be/|/embed/|/shorts/)(?P<id>[\w-]{11})"


def load(split: str, *, root: str, store: str, video_name: str = "{video}", bad_clips: str = "error") -> ClipTable:
    """Clips with their caption; `id` is the YouTube id. Columns only, no Python object per row."""
    choose("split of VideoCC", split, ("train",))
    path = published(root, "video_cc_public.csv", origin=ORIGIN)
    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        table, number_R = _columns(path, video_name)
        return checked(table, store, bad_clips, lambda row: f"{path}, row {row}", number_R)

    return cached("videocc", [path], options, store, make)


def _columns(path: Path, video_name: str) -> tuple[pa.Table, np.ndarray]:
    table, number_R = numbered_csv(path, {"url": str, "start": int, "end": int, "caption": str}, names=COLUMNS)
    found = pc.extract_regex(table.column("url"), _IDENTITY)
    if found.null_count:
        row = int(np.argmax(pc.is_null(found).to_numpy()))
        url = table.column("url")[row].as_py()
        raise ValueError(
            f"{path}, row {number_R[row]}, column 'url': expected a link to a YouTube video, found {url!r}"
        )
    identity = pc.struct_field(found, "id")
    columns = {
        "video": naming_column(video_name, identity),
        "start": pc.divide(table.column("start").cast(pa.float64()), 1e6),
        "end": pc.divide(table.column("end").cast(pa.float64()), 1e6),
        "texts": one_text(table.column("caption")),
        "id": identity,
    }
    return pa.table(columns), number_R
