"""Charades: 9,848 videos of half a minute in which people act out a script at home; Charades-Ego films it twice.

| split | videos | file in `root` |
|---|---|---|
| train, test | 7,985, 1,863 | Charades_v1_train.csv, Charades_v1_test.csv |
| ego_train, ego_test | 7,860 in all | CharadesEgo_v1_train.csv, CharadesEgo_v1_test.csv |
| ego_train_first, ego_test_first | first person only | CharadesEgo_v1_train_only1st.csv, ..._test_only1st.csv |
| ego_train_third, ego_test_third | third person only | CharadesEgo_v1_train_only3rd.csv, ..._test_only3rd.csv |

The files come from the dataset's pages, with the 157 classes in Charades_v1_classes.txt. Protocols: clips="scripts" is
retrieval of whole videos by their script, one each, among the whole test set (ECLIPSE, SViTT); clips="descriptions"
has what viewers wrote afterwards, several texts a video; clips="actions" has a row for each annotated action. The
protocols of first-person models on Charades-Ego are read by `charades_ego`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidlang.data.clips import ClipTable
from vidlang.datasets._csv import csv_rows
from vidlang.datasets._files import open_text
from vidlang.datasets._tables import Rows, cached, choose, published
from vidlang.datasets._texts import class_ids, naming

FILES = {
    "train": "Charades_v1_train.csv",
    "test": "Charades_v1_test.csv",
    "ego_train": "CharadesEgo_v1_train.csv",
    "ego_test": "CharadesEgo_v1_test.csv",
    "ego_train_first": "CharadesEgo_v1_train_only1st.csv",
    "ego_test_first": "CharadesEgo_v1_test_only1st.csv",
    "ego_train_third": "CharadesEgo_v1_train_only3rd.csv",
    "ego_test_third": "CharadesEgo_v1_test_only3rd.csv",
}
CLIPS = ("scripts", "descriptions", "actions")
ORIGIN = "Charades' annotations come from the dataset's pages"


def load(
    split: str,
    *,
    root: str,
    store: str,
    clips: str = "scripts",
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """Whole videos with their script or descriptions, or actions with `label` and its class's name as text.

    `id` is the video's name; an action's has its number in the list behind it. Videos without what was asked for have
    no row.
    """
    choose("split of Charades", split, list(FILES))
    choose("clips of Charades", clips, CLIPS)
    sources, name = [published(root, FILES[split], origin=ORIGIN)], naming(video_name)
    if clips == "actions":
        sources.append(_classes(root))
    options = {"split": split, "clips": clips, "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        rows = _actions(sources, name) if clips == "actions" else _videos(sources[0], clips, name)
        return rows.table(store, bad_clips)

    return cached("charades", sources, options, store, make)


def class_names(root: str) -> list[str]:
    """Names by label; the published codes c000 to c156 are the labels."""
    return [name for _, name in _codes(_classes(root))]


def _classes(root: str) -> Path:
    return published(root, "Charades_v1_classes.txt", origin=ORIGIN)


def _codes(path: Path) -> list[tuple[str, str]]:
    codes = []
    with open_text(path) as file:
        for number, line in enumerate(file.read().splitlines()):
            code, _, name = line.partition(" ")
            if code != f"c{number:03d}" or not name.strip():
                raise ValueError(f"{path}, line {number + 1}: expected 'c{number:03d} NAME', found {line!r}")
            codes.append((code, name.strip()))
    return codes


def _videos(path: Path, clips: str, name: Callable[[str], str]) -> Rows:
    column = {"scripts": "script", "descriptions": "descriptions"}[clips]
    rows = Rows(path)
    for number, row in csv_rows(path, {"id": str, column: str}):
        found = [row[column]] if column == "script" else row[column].split(";")
        if texts := [text for text in found if text.strip()]:
            rows.add(f"row {number}", video=name(row["id"]), texts=texts, id=row["id"])
    return rows


def _actions(sources: list[Path], name: Callable[[str], str]) -> Rows:
    codes, names = zip(*_codes(sources[1]), strict=True)
    label_of = class_ids(codes)
    rows = Rows(sources[0])
    for number, row in csv_rows(rows.path, {"id": str, "actions": str}):
        for place, action in enumerate(filter(None, row["actions"].split(";"))):
            try:
                code, start, end = action.split()
                clip = {"start": float(start), "end": float(end)}
            except ValueError:
                where = f"{rows.path}, row {number}, column 'actions'"
                raise ValueError(f"{where}: expected 'CODE START END;...', found {action!r}") from None
            if (label := label_of(code)) < 0:
                raise ValueError(f"{rows.path}, row {number}, column 'actions': there is no class {code!r}")
            identity = f"{row['id']}_{place}"
            rows.add(f"row {number}", video=name(row["id"]), **clip, texts=[names[label]], label=label, id=identity)
    return rows
