"""MSRVTT-QA: 243,680 open questions about the clips of MSR-VTT, each with one answer of one or a few words.

| split | questions | file in `root` |
|---|---|---|
| train, val, test | 158,581, 12,278, 72,821 | train_qa.json, val_qa.json, test_qa.json |

The questions come from their authors (Xu et al., "Video question answering via gradually refined attention") and the
list of answers, msrvtt_qa_answer_list.json, from Singularity's annotations. Its protocol: the model ranks that list,
and an answer counts where it is equal to the right one as a text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import class_ids, items, naming, read_answers

SPLITS = ("train", "val", "test")
ORIGIN = "MSRVTT-QA's questions come from its authors"
ANSWERS = "the list of answers comes from Singularity's annotations"


def load(
    split: str,
    *,
    root: str,
    store: str,
    listed: bool = False,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """A row for each `question`, with its `answers` (one, also in texts) and its `id`; videos are video0 ...

    With `listed`, `answer` is the answer's place in `answer_list`, or -1 for one that the list lacks: no model that
    ranks the list can find it, and it counts as wrong.
    """
    choose("split of MSRVTT-QA", split, SPLITS)
    sources, name = [published(root, f"{split}_qa.json", origin=ORIGIN)], naming(video_name)
    if listed:
        sources.append(_answers(root))
    options = {"split": split, "listed": listed, "video_name": video_name, "bad_clips": bad_clips}
    return cached("msrvtt_qa", sources, options, store, lambda: _questions(sources, name).table(store, bad_clips))


def answer_list(root: str) -> list[str]:
    """The answers that a model chooses from, by class id."""
    return read_answers(_answers(root))


def _answers(root: str) -> Path:
    return published(root, "msrvtt_qa_answer_list.json", origin=ANSWERS)


def _questions(sources: list[Path], name: Callable[[str], str]) -> Rows:
    rows = Rows(sources[0])
    number_of = class_ids(read_answers(sources[1])) if len(sources) > 1 else None
    for place, where, _, item in items(read_json(rows.path), list, rows.path):
        answer = field(item, "answer", str, where)
        rows.add(
            place,
            video=name(f"video{field(item, 'video_id', int, where)}"),
            texts=[answer],
            id=str(field(item, "id", int, where)),
            question=field(item, "question", str, where),
            answers=[answer],
            **({} if number_of is None else {"answer": number_of(answer)}),
        )
    return rows
