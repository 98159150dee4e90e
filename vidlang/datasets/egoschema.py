"""EgoSchema: a question with five answers about each three-minute clip of first-person video.

| split | questions | files in `root` |
|---|---|---|
| full | 5,031, of which the right answers are not published | questions.json |
| subset | 500, with answers | questions.json and subset_answers.json |

The files come from the EgoSchema repository. A clip's name is its q_uid, and so is its video's. `question`, `choices`
and, for subset, `answer`; full has no `answer`: its results are scored by the authors' server, which takes an object
of q_uid (here `id`) to the place of the answer. `texts` is empty, as nothing describes the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import index, items, naming

SPLITS = ("full", "subset")
OPTIONS = tuple(f"option {place}" for place in range(5))
ORIGIN = "EgoSchema's files are in its repository"


def load(split: str, *, root: str, store: str, video_name: str = "{video}", bad_clips: str = "error") -> ClipTable:
    """Whole clips with their question, in the order of questions.json."""
    choose("split of EgoSchema", split, SPLITS)
    names = ("questions.json", "subset_answers.json")[: 1 + (split == "subset")]
    sources, name = [published(root, file, origin=ORIGIN) for file in names], naming(video_name)
    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}
    return cached("egoschema", sources, options, store, lambda: _questions(sources, name).table(store, bad_clips))


def _questions(sources: list[Path], name: Callable[[str], str]) -> Rows:
    rows = Rows(sources[0])
    answers = field({"content": read_json(sources[1])}, "content", dict, str(sources[1])) if sources[1:] else None
    asked = set()
    for place, where, _, record in items(read_json(rows.path), list, rows.path, "question"):
        key = field(record, "q_uid", str, where)
        asked.add(key)
        if answers is None or key in answers:
            answer = {} if answers is None else {"answer": index(answers, key, len(OPTIONS), str(sources[1]))}
            choices = [field(record, option, str, where) for option in OPTIONS]
            question = field(record, "question", str, where)
            rows.add(place, video=name(key), texts=[], question=question, choices=choices, id=key, **answer)
    if missing := sorted(set(answers or ()) - asked):
        raise ValueError(f"{sources[1]}: {missing[0]!r} is no question of {rows.path}; are the files of one version?")
    return rows
