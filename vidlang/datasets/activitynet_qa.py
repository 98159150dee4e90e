"""ActivityNet-QA: 58,000 open questions about 5,800 videos of three minutes on average.

| split | questions | videos | files in `root` |
|---|---|---|---|
| train | 32,000 | 3,200 | train_q.json, train_a.json |
| val | 18,000 | 1,800 | val_q.json, val_a.json |
| test | 8,000 | 800 | test_q.json, test_a.json |

The files come from the dataset's repository (MILVLG/activitynet-qa), the list of answers, anet_qa_answer_list.json,
from Singularity's annotations. An answer counts where it is equal to the right one as a text. Questions call videos
without the v_ that ActivityNet's files begin with; `video_name` puts it in front.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import class_ids, index, items, naming, read_answers

SPLITS = ("train", "val", "test")
# What the numbers of the published types mean; the papers call those from yes/no on "free".
KINDS = ("motion", "spatial", "temporal", "yes_no", "color", "object", "location", "number", "other")
ORIGIN = "ActivityNet-QA's files come from the dataset's repository"
ANSWERS = "the list of answers comes from Singularity's annotations"


def load(
    split: str,
    *,
    root: str,
    store: str,
    listed: bool = False,
    video_name: str = "v_{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """A row for each `question` about a whole video, with `answers` (one, also in texts), `kind` (of KINDS) and `id`.

    With `listed`, `answer` is the answer's place in `answer_list`, or -1 for one that the list lacks.
    """
    choose("split of ActivityNet-QA", split, SPLITS)
    sources = [published(root, f"{split}_{letter}.json", origin=ORIGIN) for letter in "qa"]
    name = naming(video_name)
    if listed:
        sources.append(_answers(root))
    options = {"split": split, "listed": listed, "video_name": video_name, "bad_clips": bad_clips}
    return cached("activitynet_qa", sources, options, store, lambda: _rows(sources, name).table(store, bad_clips))


def answer_list(root: str) -> list[str]:
    """The answers that a model chooses from, by class id."""
    return read_answers(_answers(root))


def _answers(root: str) -> Path:
    return published(root, "anet_qa_answer_list.json", origin=ANSWERS)


def _rows(sources: list[Path], name: Callable[[str], str]) -> Rows:
    answers = {
        field(item, "question_id", str, where): _answer(item, where)
        for _, where, _, item in items(read_json(sources[1]), list, sources[1])
    }
    number_of = class_ids(read_answers(sources[2])) if len(sources) > 2 else None
    rows = Rows(sources[0])
    for place, where, _, item in items(read_json(rows.path), list, rows.path):
        identity = field(item, "question_id", str, where)
        if identity not in answers:
            raise ValueError(f"{where}: {sources[1].name} has no answer to question {identity!r}")
        answer, kind = answers[identity]
        rows.add(
            place,
            video=name(field(item, "video_name", str, where)),
            texts=[answer],
            id=identity,
            question=field(item, "question", str, where),
            answers=[answer],
            kind=kind,
            **({} if number_of is None else {"answer": number_of(answer)}),
        )
    return rows


def _answer(item: Any, where: str) -> tuple[str, str]:
    return field(item, "answer", str, where), KINDS[index(item, "type", len(KINDS), where)]
