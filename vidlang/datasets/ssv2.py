"""Something-Something v2: 220,847 videos of 174 kinds of handling things, as in "Putting [something] on a surface".

| split | videos | file in `root` |
|---|---|---|
| train | 168,913 | something-something-v2-train.json (or train.json) |
| val | 24,777 | something-something-v2-validation.json (or validation.json) |

The files come from the dataset's pages, with the classes in something-something-v2-labels.json (or labels.json); a
video's name is its number. Two texts, which are the two retrieval protocols of Singularity: text="label" is one
sentence a video ("Putting a cup on a table"), text="template" is the class ("Putting something on a surface"), so that
many videos are right for one text: all rows that have its `label`. Singularity evaluates both on its own choice of
2,088 validation videos, 12 of each class: those lists are read by `pairs_json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._files import field, read_json
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import class_ids, items, naming

FILES = {"train": "train.json", "val": "validation.json"}
PREFIX = "something-something-v2-"
TEXTS = ("label", "template")
ORIGIN = "the annotations come from the dataset's pages"


def load(
    split: str, *, root: str, store: str, text: str = "label", video_name: str = "{video}", bad_clips: str = "error"
) -> ClipTable:
    """Whole videos with the sentence or the class as text, and `label`, the class; `id` is the published number."""
    choose("split of Something-Something", split, list(FILES))
    choose("text of Something-Something", text, TEXTS)
    sources, name = [_published(root, FILES[split]), _published(root, "labels.json")], naming(video_name)
    options = {"split": split, "text": text, "video_name": video_name, "bad_clips": bad_clips}
    return cached("ssv2", sources, options, store, lambda: _videos(sources, text, name).table(store, bad_clips))


def class_names(root: str) -> list[str]:
    """Names by label, such as "Approaching something with your camera"."""
    return _classes(_published(root, "labels.json"))


def _published(root: str, name: str) -> Path:
    return published(root, f"{PREFIX}{name}", name, origin=ORIGIN)


def _classes(path: Path) -> list[str]:
    """The published object tells the number of each name, as a text."""
    content = read_json(path)
    numbers = {str(field(content, name, str, str(path))): name for _, _, name, _ in items(content, dict, path)}
    wanted = [str(number) for number in range(len(content))]
    if missing := [number for number in wanted if number not in numbers]:
        raise ValueError(f"{path}: {len(content)} classes must be numbered from '0'; none is {missing[0]!r}")
    return [numbers[number] for number in wanted]


def _videos(sources: list[Path], text: str, name: Callable[[str], str]) -> Rows:
    names = _classes(sources[1])
    label_of = class_ids(names)
    rows = Rows(sources[0])
    for place, where, _, item in items(read_json(rows.path), list, rows.path):
        # Brackets mark what people were asked to fill in; names of classes have none.
        template = field(item, "template", str, where).replace("[", "").replace("]", "")
        if (label := label_of(template)) < 0:
            raise ValueError(f"{where}: 'template' {template!r} is no class of {sources[1].name}")
        video = field(item, "id", str, where)
        sentence = template if text == "template" else field(item, "label", str, where)
        rows.add(place, video=name(video), texts=[sentence], label=label, id=video)
    return rows
