"""Kinetics as published, and as lists of files with labels."""

import pytest

from vidlang.datasets import kinetics

OFFICIAL = """\
label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,validate
"jumping, high",--3ouPhoy2A,0,10,validate
testifying,x.y,999999,1000009,validate
"""
STORED = ["---QUuC4vJs_000084_000094", "--3ouPhoy2A_000000_000010", "x.y_999999_1000009"]


@pytest.fixture
def store(make_store):
    return make_store(dict.fromkeys([*STORED, "val/a b/c 10", "d.e", "7"], 10.0))


@pytest.fixture
def load(tmp_path, store, rows_of):
    return lambda split="val", **options: rows_of(kinetics.load(split, root=str(tmp_path), store=store, **options))


def test_the_official_file_is_read(tmp_path, load):
    (tmp_path / "train.csv").write_text(OFFICIAL.replace("validate", "train"))
    (tmp_path / "validate.csv").write_text(OFFICIAL)
    assert kinetics.class_names(str(tmp_path)) == ["jumping, high", "testifying"]
    rows = load()
    assert rows == [
        {"video": video, "start": 0.0, "end": 10.0, "texts": [name], "label": label, "id": video}
        for video, name, label in zip(STORED, ["testifying", "jumping, high", "testifying"], [1, 0, 1], strict=True)
    ]
    assert load("train") == rows


def test_classes_can_be_folders_of_videos(tmp_path, make_store):
    (tmp_path / "train.csv").write_text("\n".join(OFFICIAL.splitlines()[:2]))
    store = make_store({f"testifying/{STORED[0]}": 10.0})
    table = kinetics.load("train", root=str(tmp_path), store=store, video_name="{label}/{video}")
    assert table.column("video") == [f"testifying/{STORED[0]}"]


@pytest.mark.parametrize(
    "lines",
    [
        "/data/val/a b/c 10.mp4 1\n/data/d.e.mkv 0\n\n/data/7.mp4 2\n",
        "/data/val/a b/c 10.mp4 250 1\n/data/d.e.mkv 300 0\n/data/7.mp4 9 2",
        "/data/val/a b/c 10.mp4,1\r\n/data/d.e.mkv,0\r\n/data/7.mp4,2\r\n",
    ],
)
def test_lists_of_files_are_read(tmp_path, load, lines):
    (tmp_path / "val.csv").write_text(lines)
    paths, videos = ["/data/val/a b/c 10.mp4", "/data/d.e.mkv", "/data/7.mp4"], ["val/a b/c 10", "d.e", "7"]
    expected = [
        {"video": video, "start": 0.0, "end": 10.0, "texts": [], "label": label, "id": path}
        for video, label, path in zip(videos, [1, 0, 2], paths, strict=True)
    ]
    assert load(prefix="/data/") == expected
    (tmp_path / "label_map_k400.txt").write_text("abseiling\nair drumming\nzumba\n")
    named = [["air drumming"], ["abseiling"], ["zumba"]]
    assert load(prefix="/data/", named=True) == [
        row | {"texts": texts} for row, texts in zip(expected, named, strict=True)
    ]


def test_other_classes_give_other_texts(tmp_path, load):
    (tmp_path / "val.csv").write_text("7.mp4 0\n")
    for name in ("zumba", "abseiling"):
        (tmp_path / "label_map_k400.txt").write_text(name)
        assert load(named=True)[0]["texts"] == [name]


def test_official_labels_are_those_of_the_training_file(tmp_path, load):
    (tmp_path / "val.csv").write_text("\n".join(OFFICIAL.splitlines()[:2]))
    for more, label in (("", 1), ("abseiling,x,0,10,train\n", 2)):
        (tmp_path / "train.csv").write_text(OFFICIAL + more)
        assert load()[0]["label"] == label


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d.e.mp4", "line 2: expected 'PATH LABEL' or 'PATH FRAMES LABEL', found 'd.e.mp4'"),
        ("d.e.mp4 1.5", "line 2: expected 'PATH LABEL' or 'PATH FRAMES LABEL', found 'd.e.mp4 1.5'"),
        ("d.e.mp4 2", "line 2: label 2 is none of 2 classes"),
        ("gone.mp4 1", "line 2: video 'gone' is not in the chunk store"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, load, line, message):
    (tmp_path / "val.csv").write_text(f"7.mp4 0\n{line}\n")
    (tmp_path / "label_map_k400.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=f"val.csv, {message}"):
        load(named=True)


def test_a_label_too_large_for_its_column_is_named(tmp_path, load):
    (tmp_path / "val.csv").write_text("7.mp4 0\nd.e.mp4 99999999999\n")
    with pytest.raises(ValueError, match="val.csv, line 2: 'label' must fit the type int32, found 99999999999"):
        load()


def test_a_wrong_row_is_named(tmp_path, load):
    (tmp_path / "train.csv").write_text(OFFICIAL)
    (tmp_path / "val.csv").write_text(OFFICIAL.replace("x.y,999999", "x.y,soon"))
    with pytest.raises(ValueError, match="val.csv, row 4, column 'time_start': must be a whole number, found 'soon'"):
        load()
    (tmp_path / "val.csv").write_text(OFFICIAL.replace("testifying,x.y", "unheard,x.y"))
    with pytest.raises(ValueError, match="val.csv, row 4, column 'label': there is no class 'unheard'"):
        load()
    (tmp_path / "val.csv").write_text(OFFICIAL.replace("label,", "labels,"))
    with pytest.raises(ValueError, match=r"val.csv has no column 'label' \(did you mean 'labels'"):
        load()


def test_another_file_or_prefix_must_exist(tmp_path, load):
    (tmp_path / "mine.txt").write_text("7.mp4 0\ngone.mp4 1\n")
    assert [row["video"] for row in load(file="mine.txt", bad_clips="drop")] == ["7"]
    with pytest.raises(ValueError, match="mine.txt, line 1: the path '7.mp4' does not begin with the prefix '/data/'"):
        load(file="mine.txt", prefix="/data/")
    with pytest.raises(ValueError, match="there is no label_map_k400.txt or train.csv"):
        load(file="mine.txt", named=True)
    (tmp_path / "train.csv").write_text("7.mp4 0\n")
    with pytest.raises(ValueError, match="train.csv is a list of files, which has no names of classes"):
        load(file="mine.txt", named=True)
