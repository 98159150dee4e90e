"""Lists in Singularity's JSON format: clips or images with captions, with captions to choose from, or with questions.

A split is one file in `root`, by its name without .json, such as msrvtt_ret_test1k. The lists come from Singularity's
annotations; those for retrieval of MSR-VTT, DiDeMo, ActivityNet and SSv2, for MSRVTT-MC, and for the questions of
MSRVTT and ActivityNet are the ones that SViTT reports on. Each item is an object:

| task | keys |
|---|---|
| retrieval | video (or image), caption: a text or a list of texts |
| choice | video, caption: a list of texts, answer: the place of the right one |
| questions | video, question, answer: a text or a list of texts (none in a test), question_id (any, or none) |

The protocols are options of `load`. MSR-VTT: as it is. DiDeMo and ActivityNet ("paragraph retrieval"): joiner=" ", all
captions of a video become one text. Singularity joins them as they are; here spaces around a sentence are left out
first, since those of ActivityNet would double. DiDeMo: first_seconds=30 too. SSv2 ("multi vision ground truth"):
shared=True.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import class_ids, first_end, index, items, naming, paragraph, read_answers, texts

TASKS = ("retrieval", "choice", "questions")
ORIGIN = "the lists come from Singularity's annotations"


def load(
    split: str,
    *,
    root: str,
    store: str,
    task: str = "retrieval",
    joiner: str | None = None,
    shared: bool = False,
    answers: str = "",
    first_seconds: float = 0,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Whole videos (or images) with texts; `id` is the question's, else the published name of the video.

    With `shared`, a caption may belong to several videos: `label` numbers the different captions, and all rows of one
    label are right for its text. `first_seconds` keeps only that much of each video; 0 keeps everything. `answers`
    names a list of answers (see `answer_list`) in which the column `answer` is the place of a question's first answer,
    or -1.
    """
    choose("task of a list", task, TASKS)
    sources, name, end = [_path(root, split)], naming(video_name), first_end(first_seconds)
    if answers:
        sources.append(_path(root, answers))
    options: dict[str, Any] = {"task": task, "joiner": joiner, "shared": shared, "first_seconds": first_seconds}
    options |= {"split": split, "listed": bool(answers), "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        rows = Rows(sources[0])
        row_of = _row_maker(task, joiner, shared, read_answers(sources[1]) if answers else None)
        for place, where, _, item in items(read_json(rows.path), list, rows.path):
            videos, row = _videos(item, where), row_of(item, where)
            if len(videos) > 1 and not shared:
                raise ValueError(f"{where}: {len(videos)} videos share a caption; read such a list with shared=True")
            for video in videos:
                rows.add(place, video=name(video), end=end, **{"id": video, **row})
        return rows.table(store, bad_clips)

    return cached("pairs_json", sources, options, store, make)


def answer_list(root: str, name: str) -> list[str]:
    """A list of answers by class id, such as msrvtt_qa_answer_list or anet_qa_answer_list."""
    return read_answers(_path(root, name))


def _path(root: str, name: str) -> Path:
    return published(root, f"{name.removesuffix('.json')}.json", origin=ORIGIN)


def _videos(item: Any, where: str) -> list[str]:
    key = "image" if isinstance(item, dict) and "image" in item and "video" not in item else "video"
    return texts(item, key, where)


def _row_maker(
    task: str, joiner: str | None, shared: bool, listed: list[str] | None
) -> Callable[[Any, str], dict[str, Any]]:
    """What a row of this task holds, from an item and where it stands."""
    number_of, labels = class_ids(listed or ()), dict[str, int]()

    def retrieval(item: Any, where: str) -> dict[str, Any]:
        captions = texts(item, "caption", where)
        row: dict[str, Any] = {"texts": captions if joiner is None else [paragraph(captions, joiner)]}
        if shared:
            row["label"] = labels.setdefault("\n".join(row["texts"]), len(labels))
        return row

    def choice(item: Any, where: str) -> dict[str, Any]:
        choices = texts(item, "caption", where)
        answer = index(item, "answer", len(choices), where)
        return {"texts": [choices[answer]], "choices": choices, "answer": answer}

    def questions(item: Any, where: str) -> dict[str, Any]:
        answers = texts(item, "answer", where) if "answer" in item else []
        row = {"texts": answers, "question": field(item, "question", str, where), "answers": answers}
        if "question_id" in item:  # a text in some lists, a number in others
            row["id"] = str(item["question_id"])
        return row if listed is None else {**row, "answer": number_of(answers[0]) if answers else -1}

    return {"retrieval": retrieval, "choice": choice, "questions": questions}[task]
