"""AGQA: open questions about the actions, objects and order of events in the videos of Charades, made from graphs.

| split | questions | file in `root` (or in `root`/AGQA_balanced) |
|---|---|---|
| train, test | 3.9 M (AGQA 1.0), 2.27 M (AGQA 2.0) | train_balanced.txt, test_balanced.txt |

The files come from the dataset's pages, in one folder for each version; SViTT reports on 1.0, balanced. Each is one
JSON object of gigabytes, so it is read piece by piece. An answer counts where it is equal to the right one as a text;
models choose among all answers of the training questions, as the dataset's baselines do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field
from vidlang.datasets._stream import stream_object
from vidlang.datasets._tables import cached, checked, choose, published
from vidlang.datasets._texts import class_ids, naming, texts

SPLITS = ("train", "test")
ORIGIN = "AGQA's balanced questions come from the dataset's pages"
# Kinds of reasoning that the dataset's tables are split by, beside `kind`.
FREE = {"reasoning": pa.list_(pa.string()), "semantic": pa.string(), "structural": pa.string()}
_BATCH = 50_000


def load(
    split: str,
    *,
    root: str,
    store: str,
    listed: bool = False,
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """A row for each `question` about a whole video, with `answers` (one, also in texts) and `id`.

    `kind` is the published ans_type (binary or open), `reasoning` the published global. With `listed`, `answer` is the
    answer's place in `answer_list`, or -1.
    """
    choose("split of AGQA", split, SPLITS)
    path, name = _path(root, split), naming(video_name)
    sources = [path, _path(root, "train")] if listed else [path]
    options = {"split": split, "listed": listed, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        table = _questions(path, name, class_ids(answer_list(root)) if listed else None)
        return checked(table, store, bad_clips, lambda row: f"{path}, question {table.column('id')[row].as_py()!r}")

    return cached("agqa", sources, options, store, make)


def answer_list(root: str) -> list[str]:
    """All answers of the training questions, sorted; their places are the class ids."""
    path = _path(root, "train")
    return sorted({field(item, "answer", str, f"{path}, question {key!r}") for key, item in stream_object(path)})


def _path(root: str, split: str) -> Path:
    return published(root, f"{split}_balanced.txt", f"AGQA_balanced/{split}_balanced.txt", origin=ORIGIN)


def _questions(path: Path, name: Callable[[str], str], number_of: Callable[[str], int] | None) -> pa.Table:
    tables: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    for key, item in stream_object(path):
        rows.append(_row(key, item, f"{path}, question {key!r}", name))
        if number_of is not None:
            rows[-1]["answer"] = number_of(rows[-1]["answers"][0])
        if len(rows) == _BATCH:
            tables.append(_arrow(rows))
            rows = []
    if rows:
        tables.append(_arrow(rows))
    if not tables:
        raise ValueError(f"{path} has no questions; is the download complete?")
    return pa.concat_tables(tables)


def _row(key: str, item: Any, where: str, name: Callable[[str], str]) -> dict[str, Any]:
    answer = field(item, "answer", str, where)
    return {
        "video": name(field(item, "video_id", str, where)),
        "start": 0.0,
        "end": float("nan"),  # filled in by `checked`
        "texts": [answer],
        "id": key,
        "question": field(item, "question", str, where),
        "answers": [answer],
        "kind": field(item, "ans_type", str, where),
        "reasoning": texts(item, "global", where),
        "semantic": field(item, "semantic", str, where),
        "structural": field(item, "structural", str, where),
    }


def _arrow(rows: list[dict[str, Any]]) -> pa.Table:
    schema = [(name, ClipTable.type_of(name) or FREE[name]) for name in rows[0]]
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))
