"""EgoMCQ and SummaryMCQ: one sentence, five clips, and which of them the sentence describes.

| split | questions | file in `root` |
|---|---|---|
| egomcq | 39,751: about 24 thousand inter, 15 thousand intra | egomcq.json, from the EgoVLP page |
| summarymcq | five clips of minutes, each from another video | summarymcq_full.json, from the HierVL page |

A question is five rows, one a clip: `query` is its number, `choice` the clip's place, `answer` the place of the right
clip, and `texts` the question's sentence, the same in all five. `kind` is "inter" (type 1: clips of different videos),
"intra" (type 2: of one video) or "summary" (type 3); some of the published evaluation code prints the first two the
wrong way round. Videos are called by their Ego4D uid; `video_name` says otherwise, see `_texts.naming`.

With bad_clips="drop", a question that lacks one of its clips is left out as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, number, parse_ids, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import index, items, naming

FILES = {"egomcq": "egomcq.json", "summarymcq": "summarymcq_full.json"}
KINDS = {1: "inter", 2: "intra", 3: "summary"}
ORIGIN = "egomcq.json is on the EgoVLP page, summarymcq_full.json on the HierVL page"


def load(split: str, *, root: str, store: str, video_name: str = "{video}", bad_clips: str = "error") -> ClipTable:
    """The candidate clips of all questions, in the order of the questions' numbers."""
    choose("split of EgoMCQ", split, list(FILES))
    path, name = published(root, FILES[split], origin=ORIGIN), naming(video_name)
    options = {"split": split, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        rows = _questions(path, name)
        return _whole_questions(rows, rows.table(store, bad_clips))

    return cached("egomcq", [path], options, store, make)


def _questions(path: Path, name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    questions = sorted(items(read_json(path), dict, path, "question"), key=lambda found: _number(found[2], path))
    for place, where, key, question in questions:
        query = field(question, "query", dict, where)
        texts = [field(query, "clip_text", str, f"{where}, query")]
        choices = field(question, "choices", dict, where)
        if sorted(choices) != sorted(map(str, range(len(choices)))) or len(choices) < 2:
            raise ValueError(f'{where}: the choices must be numbered from "0" on, found {", ".join(choices) or "none"}')
        answer = index(question, "answer", len(choices), where)
        kind = field(question, "types", int, where)
        if kind not in KINDS:
            raise ValueError(f"{where}: 'types' must be 1 (inter), 2 (intra) or 3 (summary), found {kind}")
        for choice in range(len(choices)):
            rows.add(
                f"{place}, choice '{choice}'",
                **_clip(choices[str(choice)], f"{where}, choice '{choice}'", name),
                texts=texts,
                query=int(key),
                choice=choice,
                answer=answer,
                kind=KINDS[kind],
            )
    return rows


def _clip(clip: Any, where: str, name: Callable[[str], str]) -> dict[str, Any]:
    """Video, seconds and classes of a candidate; seconds before the video's start are its start."""
    start, end = (max(number(clip, key, where), 0.0) for key in ("clip_start", "clip_end"))
    verbs, nouns = (_ids(clip, key, where) for key in ("tag_verb", "tag_noun"))
    return {
        "video": name(field(clip, "video_uid", str, where)),
        "start": start,
        "end": end,
        "verbs": verbs,
        "nouns": nouns,
    }


def _ids(clip: Any, key: str, where: str) -> list[int]:
    """Class ids, which are published as a list or as a list written as a text."""
    if isinstance(clip, dict) and isinstance(value := clip.get(key, []), list):
        if all(type(number) is int for number in value):
            return value
        raise ValueError(f"{where}: {key!r} must be a list of whole numbers, found {value!r}")
    return parse_ids(field(clip, key, str, where), f"{where}: {key!r}")


def _number(key: str, path: Path) -> int:
    if not (key.isdecimal() and key.isascii()):
        raise ValueError(f"{path}: questions must be numbered, found {key!r}")
    return int(key)


def _whole_questions(rows: Rows, table: ClipTable) -> ClipTable:
    """Without the questions of which a clip was left out."""
    asked, kept = Counter(rows.columns["query"]), Counter(table.column("query").tolist())
    whole_R = np.array([kept[query] == asked[query] for query in table.column("query").tolist()])
    if lacking := sum(kept[query] < count for query, count in asked.items()):
        logging.warning("%s: left out %d questions of %d that lack a clip", rows.path, lacking, len(asked))
    return table.filter(whole_R)
