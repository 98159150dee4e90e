"""HowTo100M: instructional videos with what is said in them, in short clips; and summaries of whole videos.

| split | rows | files in `root` |
|---|---|---|
| caption | 136 million captions of 1.2 million videos | caption.json, from the HowTo100M page |
| superclean | the captions as they were spoken, cleaned | raw_caption_superclean.json, same page |
| csv | a file for each video, with the columns start, end, text | the folder howto100m_captions, same page |
| summaries | a summary for each long video | summaries.csv, your own, with the columns video_id and summary |

Rows are captions, in the order of the file and of their time. As in MIL-NCE's code a clip shorter than `min_time`
seconds is widened around its middle to that length, and with `candidates` above 1 the `texts` of a clip are its caption
and the nearest ones in time; a video of fewer captions has fewer texts. Captions that are no text are left out, and
counted. The summaries that LongViViT was trained on are not public.

The json files are read video by video, so that memory stays small; the first load takes as long as reading 10 GB does.
The table of split csv is made anew when files are added to or removed from its folder, not when one is edited.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import numbered_csv, read_csv
from vidlang.datasets._files import field, number
from vidlang.datasets._stream import stream_object
from vidlang.datasets._tables import cached, checked_parts, choose, published
from vidlang.datasets._texts import naming, naming_column, one_text

FILES = {
    "caption": "caption.json",
    "superclean": "raw_caption_superclean.json",
    "csv": "howto100m_captions",
    "summaries": "summaries.csv",
}
ORIGIN = "the captions are on the HowTo100M page, summaries.csv is your own (video_id,summary)"
# Captions that are turned into columns at once.
ROWS = 1 << 17
# A row is called by the number of its video in the file and its own in the video.
_CAPTIONS = 1 << 24
Part = tuple[pa.Table, np.ndarray]
Captions = tuple[str, np.ndarray, np.ndarray, list[Any]]


def load(
    split: str,
    *,
    root: str,
    store: str,
    min_time: float = 5.0,
    candidates: int = 1,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Captions as clips, or summaries of whole videos."""
    choose("split of HowTo100M", split, list(FILES))
    if min_time < 0 or candidates < 1:
        raise ValueError(f"min_time must be at least 0 and candidates 1, found {min_time} and {candidates}")
    naming(video_name)
    path = _folder(root) if split == "csv" else published(root, FILES[split], origin=ORIGIN)
    options = {"min_time": min_time, "candidates": candidates, "video_name": video_name, "bad_clips": bad_clips}

    def place(row: int) -> str:
        if split == "summaries":
            return f"{path}, row {row}"
        return f"{path}, video {row // _CAPTIONS}, caption {row % _CAPTIONS}"

    def make() -> Iterator[pa.Table]:
        if split == "summaries":
            parts = _summaries(path, video_name)
        else:
            videos = _csv_files(path) if split == "csv" else _json_videos(path)
            parts = _clips(videos, path, min_time, candidates, video_name)
        return checked_parts(parts, store, bad_clips, place)

    return cached("howto100m", [path], {**options, "split": split}, store, make)


def _folder(root: str) -> Path:
    path = Path(root) / FILES["csv"]
    if not path.is_dir():
        raise ValueError(f"there is no folder {FILES['csv']} in {root!r}; {ORIGIN}")
    return path


def _json_videos(path: Path) -> Iterator[Captions]:
    for video, record in stream_object(path):
        where = f"{path}, video {video!r}"
        start, end, texts = (field(record, key, list, where) for key in ("start", "end", "text"))
        if not len(start) == len(end) == len(texts):
            counts = f"{len(start)}, {len(end)} and {len(texts)}"
            raise ValueError(f"{where}: start, end and text must have the same length, found {counts}")
        yield video, _seconds(start, "start", where), _seconds(end, "end", where), texts


def _seconds(values: list[Any], key: str, where: str) -> np.ndarray:
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return np.array([number({key: value}, key, f"{where}, caption {at}") for at, value in enumerate(values)])


def _csv_files(folder: Path) -> Iterator[Captions]:
    for path in sorted(folder.glob("*.csv")):
        table = read_csv(path, {"start": float, "end": float, "text": str})
        start, end, texts = (table.column(name) for name in ("start", "end", "text"))
        yield path.stem, start.to_numpy(), end.to_numpy(), texts.to_pylist()


def _clips(videos: Iterator[Captions], path: Path, min_time: float, candidates: int, video_name: str) -> Iterator[Part]:
    """Parts of about `ROWS` captions."""
    names: list[str] = []
    texts: list[list[str]] = []
    columns: dict[str, list[np.ndarray]] = {"start": [], "end": [], "number": []}
    silent = 0
    for at, (name, start_K, end_K, told) in enumerate(videos):
        good_K = np.array([isinstance(text, str) for text in told], bool)
        silent += int((~good_K).sum())
        nearest_KC = nearest(start_K[good_K], end_K[good_K], candidates)
        kept = [text for text in told if isinstance(text, str)]
        texts += [[kept[place] for place in dict.fromkeys(places)] for places in nearest_KC.tolist()]
        names += [name] * len(kept)
        start_K, end_K = widened(start_K[good_K], end_K[good_K], min_time)
        for key, values in (("start", start_K), ("end", end_K), ("number", at * _CAPTIONS + np.flatnonzero(good_K))):
            columns[key].append(values)
        if len(names) >= ROWS:
            yield _part(names, texts, columns, video_name)
            names, texts, columns = [], [], {key: [] for key in columns}
    if names:
        yield _part(names, texts, columns, video_name)
    if silent:
        logging.warning("%s: left out %d captions that are no text", path, silent)


def _part(names: list[str], texts: list[list[str]], columns: dict[str, list[np.ndarray]], video_name: str) -> Part:
    table = {
        "video": naming_column(video_name, pa.chunked_array([names], pa.string())),
        "start": np.concatenate(columns["start"]),
        "end": np.concatenate(columns["end"]),
        "texts": pa.array(texts, pa.list_(pa.string())),
    }
    return pa.table(table), np.concatenate(columns["number"])


def widened(start_K: np.ndarray, end_K: np.ndarray, min_time: float) -> tuple[np.ndarray, np.ndarray]:
    """Clips of at least `min_time` seconds around the same middle, or from the video's start on."""
    lacking_K = min_time - (end_K - start_K)
    # A caption that ends before it starts is a mistake in the file, and stays one.
    short_K = (lacking_K > 0) & (end_K >= start_K)
    wide_K = np.maximum(start_K - lacking_K / 2, 0.0)
    return np.where(short_K, wide_K, start_K), np.where(short_K, wide_K + min_time, end_K)


def nearest(start_K: np.ndarray, end_K: np.ndarray, count: int) -> np.ndarray:
    """Places [K, count] of each caption and its neighbours: the run of `count` that grows to the nearer side.

    At the first or last caption of the video it is the run from there on, as published; places may then come twice.
    """
    last = len(start_K) - 1
    first_K = np.arange(last + 1)
    end_place_K, growing_K = first_K.copy(), np.ones(last + 1, bool)
    for size in range(1, count):
        # A run that starts with the video stays there; one that ends with it takes the rest from before.
        at_start_K, at_end_K = first_K == 0, end_place_K == last
        first_K = np.where(growing_K & at_end_K, first_K - (count - size), first_K)
        growing_K &= ~at_start_K & ~at_end_K
        before_K, after_K = np.maximum(first_K - 1, 0), np.minimum(end_place_K + 1, last)
        back_K = end_K[end_place_K] - start_K[before_K] < end_K[after_K] - start_K[np.maximum(first_K, 0)]
        first_K = np.where(growing_K & back_K, first_K - 1, first_K)
        end_place_K = np.where(growing_K & ~back_K, end_place_K + 1, end_place_K)
    return np.clip(first_K[:, None] + np.arange(count), 0, max(last, 0))


def _summaries(path: Path, video_name: str) -> Iterator[Part]:
    table, number_R = numbered_csv(path, {"video_id": str, "summary": str})
    columns = {
        "video": naming_column(video_name, table.column("video_id")),
        "start": np.zeros(len(table)),
        "end": np.full(len(table), np.nan),
        "texts": one_text(table.column("summary")),
    }
    yield pa.table(columns), number_R
