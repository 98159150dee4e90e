"""Clips that a captioner narrated: what `launch.caption --data=... --out=` wrote, as a table to train on (LaViLa).

A split is one file of JSON lines in `root`: train.jsonl for split="train", or with parts several, train.*.jsonl (of
--part=0/4 and so on); or it is the folder of Parquet files train/, which must be complete. Each line has video, start,
end, caption, and the score that the caption had, its log p. Several lines of one clip are one row with several texts,
of which training draws one. Where captions came after prompts, such as questions, each prompt is a row of its own, and
stands in the column `prompt`; clip.prompt="{prompt}" trains on these as they are.

What a model says is not always worth learning from. `min_score` leaves out captions less sure than that, by log p for
each word; `min_words` those that are shorter; `most_alike` those that more than so many clips have word for word, which
say nothing of any of them; `keep` takes the surest share of what is left.

Captions are numbers in columns here, each different text once, so that tens of millions of them fit into memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidlang.data.bulk_store import CAPTIONS, SAID, require_complete
from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, number, read_lines
from vidlang.datasets._tables import cached, checked_parts
from vidlang.datasets._texts import naming_column

ORIGIN = "python -m launch.caption --data=... --out=... writes them"
# Texts of all captions together may be more than the 2 GB that narrower offsets reach.
TEXT = pa.large_string()
TEXTS = ("video", "prompt", "caption")
COLUMNS = pa.schema([*((name, TEXT) for name in TEXTS), *((name, pa.float64()) for name in ("start", "end", "score"))])
# Captions or clips that are Python objects, or hold narrow offsets, at a time.
AT_A_TIME = 1 << 17


def load(
    split: str,
    *,
    root: str,
    store: str,
    min_score: float | None = None,
    min_words: int = 1,
    most_alike: int = 0,
    keep: float = 1.0,
    video_name: str = "{file}",
    bad_clips: str = "error",
) -> ClipTable:
    """Clips with the captions that are left; most_alike 0 is no limit. Videos have the names of the store already."""
    if not 0 < keep <= 1 or min_words < 0 or most_alike < 0:
        raise ValueError(
            f"narrated clips: keep={keep} is a share above 0 and up to 1, min_words={min_words} and "
            f"most_alike={most_alike} are numbers from 0 on"
        )
    header, files = _sources(Path(root), split)
    options: dict[str, Any] = {"min_score": min_score, "min_words": min_words, "most_alike": most_alike, "keep": keep}
    options |= {"split": split, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> Iterator[pa.Table]:
        if header:
            require_complete(header[0].parent, CAPTIONS)
        said = _Said(files)
        kept = _chosen(said, min_score, min_words, most_alike, keep)
        return checked_parts(_clips(said, kept, video_name), store, bad_clips, said.place)

    return cached("narrated", [*header, *files], options, store, make)


def _sources(root: Path, split: str) -> tuple[list[Path], list[Path]]:
    """(the header of a folder of Parquet files, or nothing; the files that hold captions)."""
    lines = [path for path in (root / f"{split}.jsonl",) if path.is_file()]
    lines += sorted(root.glob(f"{split}.*.jsonl"))
    header = root / split / CAPTIONS.header
    if not (lines or header.is_file()):
        raise ValueError(
            f"there is no {split}.jsonl and no {split}.*.jsonl in {str(root)!r}, and no folder {split} with "
            f"{CAPTIONS.header}; {ORIGIN}"
        )
    if not header.is_file():
        return [], lines
    if lines:
        raise ValueError(f"{root} has {lines[0].name} and the folder {split}; which of them is meant? Move the other")
    return [header], sorted((header.parent / SAID.name).glob("*.parquet"))


class _Said:
    """All captions in columns of numbers, and where each stands.

    numbers: of each caption its video, prompt and text, by their places in `texts`, and its start, end and score.
    clip_N: which clip it is of, after which prompt.
    """

    def __init__(self, files: list[Path]) -> None:
        tables, self._line_N, self._first_F = list[pa.Table](), np.zeros(0, np.int32), [0]
        for path in files:
            parts = list(_of_lines(path) if path.suffix == ".jsonl" else _of_parquet(path))
            tables += [table for table, _ in parts]
            self._line_N = np.concatenate([self._line_N, *(line_V for _, line_V in parts)])
            self._first_F.append(len(self._line_N))
        self._files = files
        whole = pa.concat_tables(tables or [_encoded(COLUMNS.empty_table())]).unify_dictionaries()
        self.numbers: dict[str, np.ndarray] = {}
        self.texts: dict[str, pa.Array] = {}
        for name in COLUMNS.names:
            chunks = whole[name].chunks
            if name in TEXTS:
                self.texts[name] = chunks[0].dictionary if chunks else pa.array([], TEXT)
                chunks = [chunk.indices for chunk in chunks]
            nothing = np.zeros(0, np.int32 if name in TEXTS else np.float64)
            self.numbers[name] = np.concatenate([nothing, *(chunk.to_numpy() for chunk in chunks)])
        self.clip_N = self._clips()

    def __len__(self) -> int:
        return len(self._line_N)

    def place(self, index: int) -> str:
        """Where a caption stands, for people."""
        file = int(np.searchsorted(self._first_F, index, side="right")) - 1
        return f"{self._files[file]}, line {self._line_N[index]}"

    def _clips(self) -> np.ndarray:
        keys = [self.numbers[name] for name in ("video", "start", "end", "prompt")]
        order_N, begins_N = np.lexsort(keys), np.zeros(len(self), bool)
        for key in keys:
            begins_N[1:] |= np.diff(key[order_N]) != 0
        clip_N = np.empty(len(self), np.int64)
        clip_N[order_N] = np.cumsum(begins_N)
        return clip_N


def _of_parquet(path: Path) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """(captions, their lines); clips that could not be read have none."""
    table = pq.read_table(path, columns=COLUMNS.names).select(COLUMNS.names).cast(COLUMNS)
    told_V = table["caption"].is_valid()
    yield _encoded(table.filter(told_V)), (np.flatnonzero(told_V.to_numpy()) + 1).astype(np.int32)


def _of_lines(path: Path) -> Iterator[tuple[pa.Table, np.ndarray]]:
    lines = read_lines(path)
    while some := list(itertools.islice(lines, AT_A_TIME)):
        records = [_record(record, f"{path}, {place}") for place, record in some]
        line_V = np.array([int(place.split()[1]) for place, _ in some], np.int32)
        yield _encoded(pa.Table.from_pylist(records, COLUMNS)), line_V


def _encoded(table: pa.Table) -> pa.Table:
    """The same with each different text once."""
    return pa.table({name: table[name].dictionary_encode() if name in TEXTS else table[name] for name in COLUMNS.names})


def _record(line: Any, where: str) -> dict[str, Any]:
    texts = {name: field(line, name, str, where) for name in ("video", "caption")}
    numbers = {name: number(line, name, where) for name in ("start", "end", "score")}
    return {**texts, **numbers, "prompt": field(line, "prompt", str, where, "")}


def _chosen(said: _Said, min_score: float | None, min_words: int, most_alike: int, keep: float) -> np.ndarray:
    """Which captions are worth keeping, in order."""
    caption_N = said.numbers["caption"]
    words_N = np.fromiter(_words(said.texts["caption"]), np.int32)[caption_N]
    sure_N = said.numbers["score"] / np.maximum(1, words_N)
    good_N = words_N >= max(1, min_words)
    if min_score is not None:
        good_N &= sure_N >= min_score
    if most_alike:
        # What several samples of one clip have in common says something of it.
        once = caption_N[_different(said.clip_N, caption_N)]
        good_N &= np.bincount(once, minlength=len(said.texts["caption"]))[caption_N] <= most_alike
    kept = np.flatnonzero(good_N)
    if not len(kept):
        raise ValueError(
            f"none of {len(said)} captions is left with min_score={min_score}, min_words={min_words} and "
            f"most_alike={most_alike}; ask for less"
        )
    count = max(1, round(keep * len(kept)))
    return np.sort(kept[np.argsort(-sure_N[kept], kind="stable")[:count]])


def _words(captions: pa.Array) -> Iterator[int]:
    for first in range(0, len(captions), AT_A_TIME):
        yield from (len(caption.split()) for caption in captions.slice(first, AT_A_TIME).to_pylist())


def _different(clip_V: np.ndarray, caption_V: np.ndarray) -> np.ndarray:
    """Places of the captions that their clip did not have before, in order."""
    _, first_U = np.unique(clip_V * (int(caption_V.max(initial=0)) + 1) + caption_V, return_index=True)
    return np.sort(first_U)


def _clips(said: _Said, kept: np.ndarray, video_name: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """(clips with their different captions, which caption was the first of each), in the order of these."""
    once_K = kept[_different(said.clip_N[kept], said.numbers["caption"][kept])]
    _, first_C, clip_K = np.unique(said.clip_N[once_K], return_index=True, return_inverse=True)
    order_K = np.argsort(first_C[clip_K], kind="stable")
    once_K, moment_K = once_K[order_K], first_C[clip_K[order_K]]
    begin_C = np.flatnonzero(np.diff(moment_K, prepend=-1))
    prompts = said.texts["prompt"].take(pa.array(np.unique(said.numbers["prompt"][once_K])))
    prompted = any(prompts.to_pylist())
    for first in range(0, len(begin_C), AT_A_TIME):
        ends = [*begin_C[first : first + AT_A_TIME + 1], len(once_K)][: AT_A_TIME + 1]
        index_C = once_K[ends[:-1]]

        def column(name: str, index: np.ndarray) -> pa.Array:
            numbers = pa.array(said.numbers[name][index])
            return said.texts[name].take(numbers).cast(pa.string()) if name in TEXTS else numbers

        columns = {name: column(name, index_C) for name in ("video", "start", "end", *(["prompt"] * prompted))}
        columns["video"] = naming_column(video_name, pa.chunked_array([columns["video"]]))
        captions = column("caption", once_K[ends[0] : ends[-1]])
        columns["texts"] = pa.ListArray.from_arrays(pa.array(np.array(ends) - ends[0], pa.int32()), captions)
        yield pa.table(columns), index_C
