"""WebVid as published: one caption a video, in files of millions of rows."""

import csv

import pytest

from vidlang.datasets import webvid

COLUMNS = ["videoid", "contentUrl", "duration", "page_dir", "name"]
ROWS = [
    ["21179416", "https://x/a.mp4", "PT00H00M11S", "006001_006050", 'Aerial, "drone" shot'],
    ["0042", "https://x/b.mp4", "PT00H00M30S", "000001_000050", " Café\nat night "],
]


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "results_2M_val.csv", ROWS)
    return tmp_path


@pytest.fixture
def store(make_store):
    return make_store({"006001_006050/21179416": 11.0, "000001_000050/0042": 30.0})


def test_every_value_is_read(root, store, rows_of):
    assert rows_of(webvid.load("val", root=str(root), store=store)) == [
        {"video": "006001_006050/21179416", "start": 0.0, "end": 11.0}
        | {"texts": ['Aerial, "drone" shot'], "id": "21179416"},
        {"video": "000001_000050/0042", "start": 0.0, "end": 30.0, "texts": [" Café\nat night "], "id": "0042"},
    ]


def test_videos_may_lie_in_one_folder(root, make_store):
    store = make_store({"21179416": 11.0, "0042": 30.0})
    assert webvid.load("val", root=str(root), store=store, video_name="{video}").column("video") == ["21179416", "0042"]


@pytest.mark.parametrize(("split", "file"), webvid.FILES.items())
def test_each_split_has_its_file(tmp_path, store, split, file):
    write(tmp_path / file, ROWS[:1])
    assert len(webvid.load(split, root=str(tmp_path), store=store)) == 1


def test_wrong_columns_and_rows_are_named(root, store):
    write(root / "results_2M_val.csv", ROWS, [*COLUMNS[:-1], "names"])
    with pytest.raises(ValueError, match=r"results_2M_val.csv has no column 'name' \(did you mean 'names'"):
        webvid.load("val", root=str(root), store=store)
    write(root / "results_2M_val.csv", [ROWS[0], ROWS[1][:-1]])
    with pytest.raises(ValueError, match="results_2M_val.csv cannot be read .*4 fields in place of 5: '0042"):
        webvid.load("val", root=str(root), store=store)


def test_unknown_videos_are_named_or_left_out(root, make_store):
    store = make_store({"006001_006050/21179416": 11.0})
    with pytest.raises(ValueError, match="results_2M_val.csv, row 3: video '000001_000050/0042' is not in the chunk"):
        webvid.load("val", root=str(root), store=store)
    assert webvid.load("val", root=str(root), store=store, bad_clips="drop").column("id") == ["21179416"]
