"""EPIC-KITCHENS-100: kitchen actions, for retrieval by sentence (MIR) and for verb, noun and action classes (CLS).

| split | rows | files in `root` |
|---|---|---|
| mir_train, mir_test | 67,217 and 9,668 | EPIC_100_retrieval_train.csv, ..._test.csv, ..._{train,test}_sentence.csv |
| cls_train, cls_val | 67,217 and 9,668 | EPIC_100_train.csv and EPIC_100_validation.csv (both for either) |
| cls_test | 13,092, without classes | EPIC_100_test_timestamps.csv |

All come from the repository epic-kitchens-100-annotations (retrieval in its folder retrieval_annotations; that folder
may be `root`, or lie in it). Videos are called P01_01 ...; `video_name` may hold {video} and {participant}, such as
"{participant}/{video}". `id` is the narration's id, `participant` who filmed.

`verbs` and `nouns` are all classes of the narration, `verb_label` (97) and `noun_label` (300) those of the action. For
CLS, `label` is the place of "verb:noun" among the `actions` of train and validation, sorted as texts (3,806); `subsets`
tells rare classes and unseen kitchens. For MIR, `relevancy` gives how well each sentence fits each clip, computed from
the csv files as the official script does, and with above=0.1 the `texts` of mir_train are all the train sentences that
fit a clip better than that, and `text_weights` how well each does: training draws one of them each time, as the LaViLa
and AVION recipes do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vidlang.data.clips import ClipTable
from vidlang.datasets._columns import id_lists
from vidlang.datasets._csv import as_type, header, numbered_csv, parse_seconds, read_csv
from vidlang.datasets._files import short
from vidlang.datasets._tables import cached, checked_parts, choose, published
from vidlang.datasets._texts import naming, one_text

FILES = {
    "mir_train": "EPIC_100_retrieval_train.csv",
    "mir_test": "EPIC_100_retrieval_test.csv",
    "cls_train": "EPIC_100_train.csv",
    "cls_val": "EPIC_100_validation.csv",
    "cls_test": "EPIC_100_test_timestamps.csv",
}
ORIGIN = "the csv files are in the repository epic-kitchens-100-annotations"
RETRIEVAL = "retrieval_annotations"
WHERE = {"narration_id": str, "participant_id": str, "video_id": str, "start_timestamp": str, "stop_timestamp": str}
WHAT = {"narration": str, "verb_class": int, "noun_class": int, "all_noun_classes": str}
# Clips whose sentences are looked up at once.
ROWS = 2048


def load(
    split: str,
    *,
    root: str,
    store: str,
    above: float | None = None,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """The actions of a split, in the order of the file."""
    choose("split of EPIC-KITCHENS-100", split, list(FILES))
    if above is not None and split != "mir_train":
        raise ValueError(f"above={above} chooses sentences to train on: it is for mir_train, found split {split!r}")
    labelled = split in ("cls_train", "cls_val")
    names = [FILES[split]] + [FILES[other] for other in ("cls_train", "cls_val") if labelled and other != split]
    sources = [_file(root, name) for name in names]
    if above is not None:
        sources.append(_sentence_file(root, split))
    name = naming(video_name, "participant")

    def make() -> Iterator[pa.Table]:
        table, number_R = _actions(sources[0], split, name)
        if labelled:
            table = table.append_column("label", pa.array(_labels(root, table), pa.int32()))
        parts = [(table, number_R)] if above is None else _told(table, number_R, root, above)
        return checked_parts(parts, store, bad_clips, lambda row: f"{sources[0]}, row {row}")

    options = {"split": split, "above": above, "video_name": video_name, "bad_clips": bad_clips}
    return cached("epic_kitchens", sources, options, store, make)


def actions(root: str | Path) -> list[str]:
    """The action classes: "verb:noun" of train and validation, sorted as texts; `label` is the place in this list."""
    pairs: set[tuple[int, int]] = set()
    for split in ("cls_train", "cls_val"):
        table = read_csv(_file(root, FILES[split]), {"verb_class": int, "noun_class": int})
        pairs |= set(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    return sorted(f"{verb}:{noun}" for verb, noun in pairs)


@dataclass(frozen=True)
class Subsets:
    """Which classes are rare in train, and whose kitchens of the validation split are not in it."""

    tail_verbs: np.ndarray
    tail_nouns: np.ndarray
    unseen_participants: tuple[str, ...]


def subsets(root: str | Path) -> Subsets:
    """The lists that the challenge's tail and unseen results are counted over."""
    tails = []
    for name in ("verb", "noun"):
        table = read_csv(_file(root, f"EPIC_100_tail_{name}s.csv"), {name: int})
        tails.append(table.column(name).to_numpy())
    unseen = read_csv(_file(root, "EPIC_100_unseen_participant_ids_validation.csv"), {"participant_id": str})
    return Subsets(tails[0], tails[1], tuple(unseen.column("participant_id").to_pylist()))


@dataclass(frozen=True)
class Sentences:
    """The different sentences of a MIR split; `rows` are the clips that they were taken from, in the split's file."""

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    rows: np.ndarray


def sentences(root: str | Path, split: str) -> Sentences:
    """The sentences that relevancy is known for; a sentence's class is that of the clip with its narration id."""
    choose("split with sentences", split, ["mir_train", "mir_test"])
    path, clips = _sentence_file(root, split), read_csv(_file(root, FILES[split]), {"narration_id": str})
    # The first version of the files called the columns otherwise.
    first, second = ("index", "sentence") if "index" in header(path, ",") else ("narration_id", "narration")
    table, number_R = numbered_csv(path, {first: str, second: str})
    ids = tuple(table.column(first).to_pylist())
    place = {name: row for row, name in reversed(list(enumerate(clips.column("narration_id").to_pylist())))}
    for row, name in zip(number_R.tolist(), ids, strict=True):
        if name not in place:
            raise ValueError(f"{path}, row {row}: there is no narration {name!r} in {FILES[split]}")
    return Sentences(tuple(table.column(second).to_pylist()), ids, np.array([place[name] for name in ids]))


def relevancy(root: str | Path, split: str, rows: slice = slice(None)) -> np.ndarray:
    """How well each sentence fits each clip: float64 [clips, sentences], of the clips in `rows` of the split's file.

    It is the mean of two numbers: 1 where the verb classes are equal, else 0; and the share of noun classes that clip
    and sentence have in common among all that either has. The whole matrix of mir_train takes 9 GB.
    """
    choose("split with sentences", split, ["mir_train", "mir_test"])
    return _Relevancy(root, split).rows(rows)


class _Relevancy:
    """The classes of a split, from which any rows of its matrix are computed."""

    def __init__(self, root: str | Path, split: str) -> None:
        path = _file(root, FILES[split])
        table, number_R = numbered_csv(path, WHAT)
        self._verb_V = table.column("verb_class").to_numpy()
        nouns = _nouns(table.column("all_noun_classes"), path, number_R)
        lengths_V = np.array([len(ids) for ids in nouns])
        flat = np.array([noun for ids in nouns for noun in ids], np.int64)
        self._noun_VN = np.zeros((len(nouns), int(flat.max(initial=0)) + 1), np.float32)
        self._noun_VN[np.repeat(np.arange(len(nouns)), lengths_V), flat] = 1
        self.sentences = sentences(root, split)

    def rows(self, rows: slice) -> np.ndarray:
        """The matrix for some of the clips."""
        noun_RN, noun_SN = self._noun_VN[rows], self._noun_VN[self.sentences.rows]
        # Sums of ones: exact in float32 far beyond any number of classes.
        common_RS = (noun_RN @ noun_SN.T).astype(np.float64)
        either_RS = noun_RN.sum(1, dtype=np.float64)[:, None] + noun_SN.sum(1, dtype=np.float64)[None] - common_RS
        verb_RS = self._verb_V[rows][:, None] == self._verb_V[self.sentences.rows][None]
        return (verb_RS + common_RS / np.maximum(either_RS, 1)) / 2


def _file(root: str | Path, name: str) -> Path:
    return published(root, name, f"{RETRIEVAL}/{name}", origin=ORIGIN)


def _sentence_file(root: str | Path, split: str) -> Path:
    return _file(root, FILES[split].replace(".csv", "_sentence.csv"))


def _actions(path: Path, split: str, name: Callable[..., str]) -> tuple[pa.Table, np.ndarray]:
    """The clips of a file, with their classes where it has them, and their rows in it."""
    read, number_R = numbered_csv(path, WHERE if split == "cls_test" else WHERE | WHAT)
    start_R, end_R = (
        parse_seconds(read.column(column).to_pylist(), path, column, number_R)
        for column in ("start_timestamp", "stop_timestamp")
    )
    people = read.column("participant_id").to_pylist()
    videos = [
        name(video, participant=who) for video, who in zip(read.column("video_id").to_pylist(), people, strict=True)
    ]
    columns: dict[str, Any] = {"video": pa.array(videos, pa.string()), "start": start_R, "end": end_R}
    if split == "cls_test":
        columns["texts"] = pa.array([[]] * len(read), pa.list_(pa.string()))
    else:
        verbs, noun_labels = (
            as_type(read.column(column), pa.int32(), path, column, number_R) for column in ("verb_class", "noun_class")
        )
        columns |= {
            "texts": one_text(read.column("narration")),
            "verbs": pa.array([[verb] for verb in verbs.to_pylist()], pa.list_(pa.int32())),
            "nouns": pa.array(_nouns(read.column("all_noun_classes"), path, number_R), pa.list_(pa.int32())),
            "verb_label": verbs,
            "noun_label": noun_labels,
        }
    columns |= {"id": read.column("narration_id"), "participant": read.column("participant_id")}
    return pa.table(columns), number_R


def _nouns(texts: pa.ChunkedArray, path: Path, number_R: np.ndarray) -> list[list[int]]:
    found = id_lists(texts.combine_chunks())
    if found.null_count:
        row = found.is_null().to_pylist().index(True)
        where = f"{path}, row {number_R[row]}, column 'all_noun_classes'"
        raise ValueError(f"{where}: must be a list of whole numbers, found {short(texts[row].as_py())}")
    return found.to_pylist()


def _labels(root: str, table: pa.Table) -> list[int]:
    place = {action: label for label, action in enumerate(actions(root))}
    pairs = zip(table.column("verb_label").to_pylist(), table.column("noun_label").to_pylist(), strict=True)
    return [place[f"{verb}:{noun}"] for verb, noun in pairs]


def _told(table: pa.Table, number_R: np.ndarray, root: str, above: float) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Parts of the table with all the sentences that fit a clip; its own where none does."""
    fit = _Relevancy(root, "mir_train")
    texts, place = np.array(fit.sentences.texts, object), table.column_names.index("texts")
    for first in range(0, len(table), ROWS):
        part = table.slice(first, ROWS)
        fit_RS = fit.rows(slice(first, first + ROWS))
        own = part.column("texts").to_pylist()
        told, weights = [], []
        for row, fit_S in enumerate(fit_RS):
            fits_S = fit_S > above
            told.append(texts[fits_S].tolist() if fits_S.any() else own[row])
            weights.append(fit_S[fits_S].tolist() if fits_S.any() else [1.0] * len(own[row]))
        part = part.set_column(place, "texts", pa.array(told, pa.list_(pa.string())))
        part = part.append_column("text_weights", pa.array(weights, pa.list_(pa.float32())))
        yield part, number_R[first : first + len(part)]
