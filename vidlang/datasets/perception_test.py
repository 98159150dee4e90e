"""Perception Test, multiple choice: 38,060 questions with three choices about 10,361 videos of 23 s.

| split | questions | files in `root` |
|---|---|---|
| train | 7,392 | mc_question_train.json, cut_frame_mapping_train.json |
| valid | 19,140 | mc_question_valid.json, cut_frame_mapping_valid.json |
| test | 11,528 | mc_question_test.json (answers are held out) |

The files come from the benchmark's repository (google-deepmind/perception_test). In some videos the end shows the
answer, as where a ball was hidden. `cut` leaves out everything from the frame that cut_frame_mapping names, which is
the benchmark's rule; videos with -1 there, or none, are whole. Those of the test split are published cut.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import index, items, naming, texts

SPLITS = ("train", "valid", "test")
ORIGIN = "the annotations come from the benchmark's repository"


def load(
    split: str, *, root: str, store: str, cut: bool = True, video_name: str = "{video}", bad_clips: str = "error"
) -> ClipTable:
    """A row for each `question`, with `choices`, `answer` (not of split test) and its choice as text.

    `kind` is the published area (semantics, physics, memory or abstraction), `reasoning` the sort of it, and `id` is
    VIDEO_NUMBER.
    """
    choose("split of Perception Test", split, SPLITS)
    sources, name = [published(root, f"mc_question_{split}.json", origin=ORIGIN)], naming(video_name)
    if cut and split != "test":
        sources.append(published(root, f"cut_frame_mapping_{split}.json", origin=ORIGIN))
    options = {"split": split, "cut": cut, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        return _questions(sources, split, name).table(store, bad_clips)

    return cached("perception_test", sources, options, store, make)


def _questions(sources: list[Path], split: str, name: Callable[[str], str]) -> Rows:
    cuts = read_json(sources[1]) if len(sources) > 1 else {}
    rows = Rows(sources[0])
    for place, where, key, entry in items(read_json(rows.path), dict, rows.path, "video"):
        end = _end(entry, where, field(cuts, key, int, str(sources[-1]), -1))
        for item in field(entry, "mc_question", list, where, []):
            number = field(item, "id", int, where)
            inside = f"{where}, question {number}"
            rows.add(
                f"{place}, question {number}",
                video=name(key),
                end=end,
                **_choices(item, split, inside),
                question=field(item, "question", str, inside),
                kind=field(item, "area", str, inside),
                reasoning=field(item, "reasoning", str, inside),
                id=f"{key}_{number}",
            )
    return rows


def _choices(item: Any, split: str, where: str) -> dict[str, Any]:
    choices = texts(item, "options", where)
    if split == "test":
        return {"texts": [], "choices": choices}
    answer = index(item, "answer_id", len(choices), where)
    return {"texts": [choices[answer]], "choices": choices, "answer": answer}


def _end(entry: Any, where: str, cut_frame: int) -> float | None:
    """The second from which a video must not be seen."""
    if cut_frame <= 0:
        return None
    rate = field(field(entry, "metadata", dict, where), "frame_rate", float, where)
    if rate <= 0:
        raise ValueError(f"{where}: 'frame_rate' must be above 0, found {rate}")
    return cut_frame / rate
