"""Clips that a captioner narrated: the JSON lines of `launch.caption --out` as a table to train on (LaViLa).

A split is one file in `root`: train.jsonl for split="train", or with parts several, train.*.jsonl (of --part=0/4 and so
on). Each line has video, start, end, caption, and the score that the caption had, its log p. Several lines of one clip
are one row with several texts, of which training draws one. Where captions came after prompts, such as questions, each
prompt is a row of its own, and stands in the column `prompt`; clip.prompt="{prompt}" trains on these as they are.

What a model says is not always worth learning from. `min_score` leaves out captions less sure than that, by log p for
each word; `min_words` those that are shorter; `most_alike` those that more than so many clips have word for word, which
say nothing of any of them; `keep` takes the surest share of what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, number, read_lines
from vidlang.datasets._tables import Rows, cached
from vidlang.datasets._texts import naming

ORIGIN = "python -m launch.caption --data=... --out=FILE writes such files"


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
    paths = [path for path in (Path(root) / f"{split}.jsonl",) if path.is_file()]
    paths += sorted(Path(root).glob(f"{split}.*.jsonl"))
    if not paths:
        raise ValueError(f"there is no {split}.jsonl and no {split}.*.jsonl in {root!r}; {ORIGIN}")
    options: dict[str, Any] = {"min_score": min_score, "min_words": min_words, "most_alike": most_alike, "keep": keep}
    options |= {"split": split, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        found = [line for path in paths for line in _lines(path)]
        kept = _chosen(found, min_score, min_words, most_alike, keep)
        rows, name, clips = Rows(Path(root)), naming(video_name), dict[Clip, list[Line]]()
        for place in kept:
            clips.setdefault(found[place].clip, []).append(found[place])
        prompted = any(clip.prompt for clip in clips)
        for clip, lines in clips.items():
            texts = list(dict.fromkeys(line.caption for line in lines))
            more = {"prompt": clip.prompt} if prompted else {}
            rows.add(lines[0].place, video=name(clip.video), start=clip.start, end=clip.end, texts=texts, **more)
        return rows.table(store, bad_clips)

    return cached("narrated", paths, options, store, make)


class Clip(NamedTuple):
    """What captions are of."""

    video: str
    start: float
    end: float
    prompt: str


class Line(NamedTuple):
    """A caption, where in the file it stands, and its score for each word."""

    place: str
    clip: Clip
    caption: str
    sure: float


def _lines(path: Path) -> list[Line]:
    found = []
    for number_of_line, record in read_lines(path):
        place, where = f"{path.name}, {number_of_line}", f"{path}, {number_of_line}"
        video, caption = (field(record, key, str, where) for key in ("video", "caption"))
        start, end, score = (number(record, key, where) for key in ("start", "end", "score"))
        clip = Clip(video, start, end, field(record, "prompt", str, where, ""))
        found.append(Line(place, clip, caption, score / max(1, len(caption.split()))))
    return found


def _chosen(found: Sequence[Line], min_score: float | None, min_words: int, most_alike: int, keep: float) -> list[int]:
    """Places of the captions that are worth keeping, in order."""
    # What several samples of one clip have in common says something of it.
    alike = Counter(caption for caption, _ in {(line.caption, line.clip) for line in found})
    kept = [
        place
        for place, line in enumerate(found)
        if line.caption.strip()
        and len(line.caption.split()) >= min_words
        and (min_score is None or line.sure >= min_score)
        and (not most_alike or alike[line.caption] <= most_alike)
    ]
    if not kept:
        raise ValueError(
            f"none of {len(found)} captions is left with min_score={min_score}, min_words={min_words} and "
            f"most_alike={most_alike}; ask for less"
        )
    count = max(1, round(keep * len(kept)))
    surest = np.argsort([-found[place].sure for place in kept], kind="stable")[:count]
    return sorted(kept[i] for i in surest.tolist())
