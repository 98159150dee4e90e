"""Charades as published: scripts, descriptions and timed actions in one csv file."""

import csv

import pytest

from vidlang.datasets import charades

COLUMNS = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length".split(",")
ROWS = [
    {"id": "46GP8", "script": 'A person, "cooking";\nthen eating.', "descriptions": "One cooks; one, eats. ;Café"}
    | {"actions": "c001 11.90 21.20;c000 0.00 12.60", "length": "24.83"},
    {"id": "N11GT", "script": " Someone sits.", "descriptions": "Sits", "actions": "", "length": "18.33"},
    {"id": "EMPTY", "script": "", "descriptions": "", "actions": "c000 1 3", "length": "18.33"},
]


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "Charades_v1_test.csv", ROWS)
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Holding some clothes\nc001 Putting clothes somewhere\n")
    return tmp_path


@pytest.fixture
def store(make_store):
    return make_store({"46GP8": 24.0, "N11GT": 18.0, "EMPTY": 10.0})


@pytest.fixture
def load(root, store, rows_of):
    return lambda **options: rows_of(charades.load("test", root=str(root), store=store, **options))


def test_scripts_and_descriptions_are_read(load):
    row = {"start": 0.0, "end": 24.0, "video": "46GP8", "id": "46GP8"}
    other = {"start": 0.0, "end": 18.0, "video": "N11GT", "id": "N11GT"}
    assert load() == [
        row | {"texts": ['A person, "cooking";\nthen eating.']},
        other | {"texts": [" Someone sits."]},
    ]
    assert load(clips="descriptions") == [
        row | {"texts": ["One cooks", " one, eats. ", "Café"]},
        other | {"texts": ["Sits"]},
    ]


def test_actions_have_labels(root, load):
    assert charades.class_names(str(root)) == ["Holding some clothes", "Putting clothes somewhere"]
    assert [tuple(row.values()) for row in load(clips="actions")] == [
        ("46GP8", 11.9, 21.2, ["Putting clothes somewhere"], 1, "46GP8_0"),
        ("46GP8", 0.0, 12.6, ["Holding some clothes"], 0, "46GP8_1"),
        ("EMPTY", 1.0, 3.0, ["Holding some clothes"], 0, "EMPTY_0"),
    ]


@pytest.mark.parametrize(("split", "file"), charades.FILES.items())
def test_each_split_has_its_file(tmp_path, make_store, split, file):
    columns = [*COLUMNS, "egocentric", "charades_video"] if "ego" in split else COLUMNS
    write(tmp_path / file, [{"id": "A1", "script": split, "egocentric": "Yes"}], columns)
    assert charades.load(split, root=str(tmp_path), store=make_store({"A1": 9.0})).column("texts") == [[split]]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("c002 1 2", "row 3, column 'actions': there is no class 'c002'"),
        ("c001 1", "row 3, column 'actions': expected 'CODE START END;...', found 'c001 1'"),
        ("c001 a 2", "row 3, column 'actions': expected 'CODE START END;...', found 'c001 a 2'"),
        ("c001 5 2", "row 3: the clip 5 to 2 s of video 'N11GT' is none"),
        ("c001 18 19", "row 3: the clip 18 to 19 s of video 'N11GT' starts after the video's end at 18 s"),
    ],
)
def test_a_wrong_action_is_named(root, load, actions, message):
    write(root / "Charades_v1_test.csv", [ROWS[0], ROWS[1] | {"actions": actions}])
    with pytest.raises(ValueError, match=f"Charades_v1_test.csv, {message}"):
        load(clips="actions")


def test_a_wrong_column_class_or_video_is_named(root, load, make_store):
    store = make_store({"N11GT": 18.0})
    with pytest.raises(ValueError, match="Charades_v1_test.csv, row 2: video '46GP8' is not in the chunk store"):
        charades.load("test", root=str(root), store=store)
    assert charades.load("test", root=str(root), store=store, bad_clips="drop").column("video") == ["N11GT"]
    write(root / "Charades_v1_test.csv", ROWS, ["id", "scripts"])
    with pytest.raises(ValueError, match=r"test.csv has no column 'script' \(did you mean 'scripts'"):
        load()
    (root / "Charades_v1_classes.txt").write_text("c000 Holding some clothes\nc002 Putting\n")
    with pytest.raises(ValueError, match="classes.txt, line 2: expected 'c001 NAME', found 'c002 Putting'"):
        charades.class_names(str(root))
