"""Rows are held against the store whole columns at a time, and a made table is found again."""

import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data.clips import ClipTable
from vidlang.datasets import _tables
from vidlang.datasets._tables import Rows, cached, checked, checked_parts, choose, published

SECONDS = {"b": 10.0, "a": 20.0, "c": 30.0}


@pytest.fixture(scope="module")
def store(make_store):
    return make_store(SECONDS)


def clips(*rows):
    """A table of (video, start, end) whose texts are the numbers of its rows."""
    video, start, end = zip(*rows, strict=True)
    texts = pa.array([[str(i)] for i in range(len(rows))])
    return pa.table(
        {"video": video, "start": pa.array(start, pa.float64()), "end": pa.array(end, pa.float64()), "texts": texts}
    )


def place(row):
    return f"file.csv, row {row}"


NAN = float("nan")


def test_missing_ends_are_those_of_the_videos_and_others_stay(store):
    rows = [("a", 0, NAN), ("b", 9.5, NAN), ("c", 1, 99), ("a", 3, 4)]
    table = checked(clips(*rows), store, "error", place)
    assert table.column("end").tolist() == [20, 10, 99, 4]
    assert table.column("video") == ["a", "b", "c", "a"] and table.store == store


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("d", 0, 1), r"video 'd' is not in the chunk store .*; precut it"),
        (("b", 10, 11), "the clip 10 to 11 s of video 'b' starts after the video's end at 10 s"),
        (("b", 10, NAN), "the clip 10 to 10 s of video 'b' starts after the video's end at 10 s"),
        (("a", -1, 2), r"the clip -1 to 2 s of video 'a' is none: 0 <= start < end is needed"),
        (("a", 2, 2), "the clip 2 to 2 s of video 'a' is none"),
        (("a", NAN, 2), "the clip nan to 2 s of video 'a' is none"),
        (("a", 2, float("inf")), "the clip 2 to inf s of video 'a' is none"),
    ],
)
def test_each_bad_clip_is_named_or_dropped(store, row, message, caplog):
    table = clips(("a", 0, 1), row, ("c", 0, 1), row)
    with pytest.raises(ValueError, match="file.csv, row 1: " + message):
        checked(table, store, "error", place)
    with caplog.at_level(logging.WARNING, logger="absl"):
        kept = checked(table, store, "drop", place)
    assert kept.column("texts") == [["0"], ["2"]]
    assert "Left out 2 clips of 4: file.csv, row 1: " in caplog.text
    with pytest.raises(ValueError, match="bad_clips='drop'"):
        checked(clips(row), store, "drop", place)
    with pytest.raises(ValueError, match=r"unknown bad_clips 'dropp' \(did you mean 'drop'\?\)"):
        checked(table, store, "dropp", place)


def test_parts_give_what_the_whole_gives(store):
    rng = np.random.default_rng(0)
    rows = [(str(rng.choice(["a", "b", "c", "d"])), float(rng.uniform(-1, 12)), 13.0) for _ in range(200)]
    whole = clips(*rows)
    cuts = [0, 1, 60, 60, 130, 200]
    parts = [(whole.slice(a, b - a), np.arange(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
    in_parts = pa.concat_tables(checked_parts(parts, store, "drop", place))
    good = [r for r in rows if r[0] in SECONDS and 0 <= r[1] < SECONDS[r[0]]]
    assert in_parts.column("start").to_pylist() == [start for _, start, _ in good] and 0 < len(good) < 200
    assert in_parts.equals(checked(whole, store, "drop", place)._table)


def test_an_error_in_a_later_part_names_its_own_row(store):
    parts = [(clips(("a", 0, 1), ("a", 1, 2)), np.array([5, 9])), (clips(("a", 0, 1), ("d", 1, 2)), np.array([11, 14]))]
    with pytest.raises(ValueError, match="file.csv, row 14: video 'd'"):
        list(checked_parts(parts, store, "error", place))


def test_the_first_of_the_dropped_clips_is_shown(store, caplog):
    parts = [(clips(("a", 0, 1), ("d", 1, 2)), np.array([5, 9])), (clips(("a", 0, 1), ("e", 1, 2)), np.array([11, 14]))]
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(pa.concat_tables(checked_parts(parts, store, "drop", place))) == 2
    assert "Left out 2 clips of 4: file.csv, row 9: video 'd'" in caplog.text


def test_rows_name_their_places(tmp_path, store):
    rows = Rows(tmp_path / "file.json")
    rows.add("item 4", video="a", texts=["x"], id="one", answers=[])
    rows.add("item 7", video="b", start=1, end=2, texts=[], id="two", answers=["y"])
    table = rows.table(store, "error")
    assert table.row(0) == {"video": "a", "start": 0, "end": 20, "texts": ["x"], "id": "one", "answers": []}
    assert table.row(1) == {"video": "b", "start": 1, "end": 2, "texts": [], "id": "two", "answers": ["y"]}
    rows.add("item 9", video="z", texts=[], id="three", answers=[])
    with pytest.raises(ValueError, match="file.json, item 9: video 'z' is not in the chunk store"):
        rows.table(store, "error")
    with pytest.raises(ValueError, match="file.json has no clips for what was asked"):
        Rows(tmp_path / "file.json").table(store, "error")


@pytest.mark.parametrize(
    "wrong",
    [{"label": 10**11}, {"label": 10**400}, {"verbs": [10**11]}, {"id": "\ud800"}, {"texts": ["\ud800"]}],
)
def test_a_value_that_arrow_cannot_hold_is_named(tmp_path, store, wrong):
    rows, good = Rows(tmp_path / "file.json"), {"texts": ["x"], "label": 1, "verbs": [1], "id": "one"}
    rows.add("item 4", video="a", **good)
    rows.add("item 7", video="a", **(good | wrong))
    with pytest.raises(ValueError, match=f"file.json, item 7: '{next(iter(wrong))}' must fit the type .*, found "):
        rows.table(store, "error")
    with pytest.raises(ValueError, match="file.json, item 9: its start and end must be numbers"):
        rows.add("item 9", video="a", start=0, end=10**400, **good)


def test_ends_far_beyond_are_counted_in_one_warning(store, caplog):
    table = clips(("b", 0, 11), ("a", 0, 21.5), ("b", 1, NAN), ("d", 0, 10**9), ("c", 2, 900), ("b", 50, 60))
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(checked(table, store, "drop", place, np.arange(4, 10))) == 4
    assert "2 clips of 4 end more than 1 s after their video" in caplog.text
    assert "file.csv, row 5: a clip ends at 21.5 s, its video 'a' at 20 s" in caplog.text
    assert "file.csv, row 7: video 'd'" in caplog.text


@pytest.fixture
def make(store):
    """A function that makes a table of one clip and counts its calls."""

    def call():
        call.count += 1
        return checked(clips(("a", 0, call.count)), store, "error", place)

    call.count = 0
    return call


def test_a_table_is_made_once_for_equal_sources_options_and_store(tmp_path, store, make, make_store):
    source = tmp_path / "file.csv"
    source.write_text("one")
    first = cached("name", [source], {"split": "train"}, store, make)
    assert cached("name", [source], {"split": "train"}, store, make).path == first.path and make.count == 1
    assert os.path.dirname(first.path) == str(tmp_path / ".vidlang")
    for other in (
        lambda: cached("name", [source], {"split": "val"}, store, make),
        lambda: cached("other", [source], {"split": "train"}, store, make),
        lambda: cached("name", [source], {"split": "train"}, make_store(SECONDS), make),
        lambda: source.write_text("two") and cached("name", [source], {"split": "train"}, store, make),
    ):
        count = make.count
        assert other().path != first.path and make.count == count + 1
    # Those who still hold the older table can open it: nothing is removed.
    assert pickle.loads(pickle.dumps(first)).column("end").tolist() == [1]


def test_a_store_of_other_content_in_the_same_place_gives_another_table(tmp_path, store, make, make_store):
    source, moved = tmp_path / "file.csv", tmp_path / "store"
    source.write_text("one")
    shutil.copytree(store, moved)
    first = cached("name", [source], {}, moved, make)
    shutil.rmtree(moved)
    shutil.copytree(make_store({"a": 20.0}), moved)
    assert cached("name", [source], {}, moved, make).path != first.path and make.count == 2


def test_a_table_made_in_parts_is_kept_too(tmp_path, store):
    source = tmp_path / "file.csv"
    source.write_text("one")
    parts = [(clips(("a", 0, NAN)), np.array([2])), (clips(("b", 1, NAN)), np.array([3]))]
    table = cached("name", [source], {}, store, lambda: checked_parts(parts, store, "error", place))
    assert table.column("end").tolist() == [20, 10] and table.store == store


def test_a_failure_leaves_no_table(tmp_path, store):
    source = tmp_path / "file.csv"
    source.write_text("one")
    parts = [(clips(("a", 0, 1)), np.array([2])), (clips(("d", 0, 1)), np.array([3]))]
    with pytest.raises(ValueError, match="row 3: video 'd'"):
        cached("name", [source], {}, store, lambda: checked_parts(parts, store, "error", place))
    assert not [name for name in os.listdir(tmp_path / ".vidlang") if name.endswith((".arrow", ".partial"))]


def test_who_comes_together_makes_the_table_once(tmp_path, store, make):
    source = tmp_path / "file.csv"
    source.write_text("one")

    def slowly():
        time.sleep(0.2)
        return make()

    # Each opens the lock file itself, as processes do.
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: cached("name", [source], {}, store, slowly), range(4)))
    assert make.count == 1 and len({table.path for table in tables}) == 1


def test_a_file_without_rows_is_named(tmp_path, store):
    source = tmp_path / "file.csv"
    source.write_text("one")
    for parts in ([], [(clips(("a", 0, 1)).slice(0, 0), np.array([], int))]):
        with pytest.raises(ValueError, match="file.csv has no clips for what was asked"):
            cached("name", [source], {}, store, lambda parts=parts: checked_parts(parts, store, "error", place))


OWN_MEMORY = """
import pickle, sys

def own():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1000

import numpy as np
import vidlang.data.clips
data = pickle.loads(sys.stdin.buffer.read())
before = own()
table = pickle.loads(data)
for row in np.random.default_rng(0).integers(0, len(table), 2000).tolist():
    table.cell(row, "texts"), table.cell(row, "video"), table.cell(row, "start"), table.cell(row, "group")
print(own() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="the kernel does not count memory here")
def test_a_worker_shares_the_table_with_the_others(tmp_path, store):
    source, rows = tmp_path / "file.csv", 200_000
    source.write_text("one")
    columns = {
        "video": pa.array(["a"] * rows),
        "start": np.zeros(rows),
        "end": np.ones(rows),
        "texts": pa.array([["a sentence of some forty letters, or more"]] * rows),
        "group": np.arange(rows),
    }
    parts = [(pa.table(columns), np.arange(rows))]
    table = cached("name", [source], {}, store, lambda: checked_parts(parts, store, "error", place))
    table = ClipTable.concatenate([table, table])
    data = pickle.dumps(table)
    size = os.path.getsize(table._parts[0].path) / 1e6
    run = subprocess.run([sys.executable, "-c", OWN_MEMORY], input=pickle.dumps(data), capture_output=True, check=True)
    # Megabytes: a little for the interpreter, next to none for the rows.
    assert size > 15 and len(data) < 1000 and float(run.stdout) < 6


def test_the_folder_can_be_chosen_and_others_tables_are_used(tmp_path, store, make, monkeypatch):
    source = tmp_path / "data" / "file.csv"
    source.parent.mkdir()
    source.write_text("one")
    monkeypatch.setenv("VIDLANG_CACHE", str(tmp_path / "mine"))
    assert os.path.dirname(cached("name", [source], {}, store, make).path) == str(tmp_path / "mine")
    monkeypatch.delenv("VIDLANG_CACHE")
    beside = cached("name", [source], {}, store, make)
    # Somebody else's, in a folder where one may not write.
    monkeypatch.setattr(_tables.os, "access", lambda *_: False)
    assert cached("name", [source], {}, store, make).path == beside.path and make.count == 2
    monkeypatch.setattr(_tables.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    path = cached("other", [source], {}, store, make).path
    assert path.startswith(str(tmp_path / "temporary" / f"vidlang-{os.getuid()}"))


def test_choices_and_files_say_what_there_is(tmp_path):
    assert choose("split", "val", ("train", "val")) == "val"
    with pytest.raises(ValueError, match=r"unknown split 'trian' \(did you mean 'train'\?\); there are: train, val"):
        choose("split", "trian", ("train", "val"))
    (tmp_path / "b.csv").write_text("")
    assert published(tmp_path, "a.csv", "b.csv", origin="from there") == tmp_path / "b.csv"
    with pytest.raises(ValueError, match="there is no a.csv or c.csv in .*; from there"):
        published(tmp_path, "a.csv", "c.csv", origin="from there")


def test_tables_are_clip_tables(store):
    assert isinstance(checked(clips(("a", 0, 1)), store, "error", place), ClipTable)
