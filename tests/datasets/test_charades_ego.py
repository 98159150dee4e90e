"""Charades-Ego as published for first-person models: narrated actions to train on, whole videos to test on."""

import pickle

import pytest

from vidlang.datasets import charades_ego

TRAIN = "id\tcls\tt_start\tt_end\tnarration\nAB12EGO\tc092\t1.5\t20.1\tI hold a cup\nXY9ZEGO\tc000\t0.0\t4.25\tI, too\n"
TEST = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length,egocentric,charades_video\n"
    'XY9ZEGO,S,Kitchen,6,7,Yes,"A person eats, then sits.",cup,d,'
    "c147 0.00 12.60;c092 11.90 21.20;c147 20 21,31.5,Yes,XY9Z\n"
    "AB12EGO,S,Kitchen,6,7,Yes,Nothing happens.,cup,d,,29.0,Yes,AB12\n"
)
PICKLED = [("AB12EGO", 1.5, 20.1, "I hold a cup"), ("XY9ZEGO", 0, 4.25, ["I do", "You do"])]


@pytest.fixture(scope="module")
def store(make_store):
    return make_store({"AB12EGO": 30.0, "XY9ZEGO": 31.5})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "metadata_train.csv").write_text(TRAIN)
    (tmp_path / "CharadesEgo_v1_test_only1st.csv").write_text(TEST)
    (tmp_path / "metadata_filtered_train.pkl").write_bytes(pickle.dumps(PICKLED))
    return tmp_path


def row(video, start, end, texts, **more):
    return {"video": video, "start": start, "end": end, "texts": texts, **more}


def test_every_split_has_its_values(root, store, rows_of):
    assert rows_of(charades_ego.load("train", root=str(root), store=store)) == [
        row("AB12EGO", 1.5, 20.1, ["I hold a cup"], label=92, id="AB12EGO"),
        row("XY9ZEGO", 0, 4.25, ["I, too"], label=0, id="XY9ZEGO"),
    ]
    assert rows_of(charades_ego.load("lavila_train", root=str(root), store=store)) == [
        row("AB12EGO", 1.5, 20.1, ["I hold a cup"]),
        row("XY9ZEGO", 0, 4.25, ["I do", "You do"]),
    ]
    assert rows_of(charades_ego.load("test", root=str(root), store=store)) == [
        row("XY9ZEGO", 0, 31.5, ["A person eats, then sits."], id="XY9ZEGO", labels=[92, 147]),
        row("AB12EGO", 0, 30, ["Nothing happens."], id="AB12EGO", labels=[]),
    ]


def test_a_file_without_classes_is_read_too(root, store):
    path = root / "metadata_train.csv"
    path.write_text(path.read_text().replace("cls", "verb"))
    table = charades_ego.load("train", root=str(root), store=store)
    assert "label" not in table.columns and table.column("texts") == [["I hold a cup"], ["I, too"]]


@pytest.mark.parametrize(
    ("split", "old", "new", "message"),
    [
        ("train", "narration", "narrated", "metadata_train.csv has no column 'narration' .did you mean 'narrated'"),
        ("train", "4.25", "soon", "metadata_train.csv, row 3, column 't_end': must be a number, found 'soon'"),
        ("train", "c092", "c157", "row 2, column 'cls': must be classes c000 to c156, found 'c157'"),
        ("train", "1.5\t20.1", "30\t31", "row 2: the clip 30 to 31 s of video 'AB12EGO' starts after the video's end"),
        ("train", "XY9ZEGO", "ZZZZEGO", "row 3: video 'ZZZZEGO' is not in the chunk store"),
        ("test", "c092", "x92", "only1st.csv, row 2, column 'actions': must be classes c000 to c156, found 'x92'"),
        ("test", "AB12EGO", "ZZZZEGO", "only1st.csv, row 3: video 'ZZZZEGO' is not in the chunk store"),
    ],
)
def test_a_wrong_value_is_named(root, store, split, old, new, message):
    path = root / charades_ego.FILES[split]
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        charades_ego.load(split, root=str(root), store=store)


def test_a_wrong_item_is_named(root, store):
    (root / "metadata_filtered_train.pkl").write_bytes(pickle.dumps([*PICKLED, ("ZZZZEGO", 0, 1, "text")]))
    with pytest.raises(ValueError, match="filtered_train.pkl, item 2: video 'ZZZZEGO' is not in the chunk store"):
        charades_ego.load("lavila_train", root=str(root), store=store)
