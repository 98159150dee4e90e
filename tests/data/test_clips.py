"""A clip table keeps what was put in, on disk and across processes, and refuses what it cannot mean."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data import clip_columns, clips
from vidlang.data.clips import ClipTable


def columns(n: int = 4) -> dict:
    return {
        "video": [f"v{i % 2}" for i in range(n)],
        "start": [float(i) for i in range(n)],
        "end": [i + 1.5 for i in range(n)],
        "texts": [[f"text {i}", f"other {i}"][: 1 + i % 2] for i in range(n)],
        "verbs": [[i, i + 1] for i in range(n)],
        "group": [i // 2 for i in range(n)],
        "label": list(range(n)),
        "note": ["free"] * n,
    }


def as_lists(table: ClipTable) -> dict:
    return {name: list(table.column(name)) for name in table.columns}


def test_rows_and_columns_agree():
    table = ClipTable.from_columns(columns())
    assert len(table) == 4 and table.columns == tuple(columns())
    assert as_lists(table) == columns()
    assert table.row(3) == {name: values[3] for name, values in columns().items()}
    assert table.column("start").dtype == np.float64 and table.column("label").dtype == np.int32
    assert table.videos() == ["v0", "v1"]
    with pytest.raises(IndexError):
        table.row(-1)


def test_saved_table_is_the_same_and_pickles_by_path(tmp_path):
    table = ClipTable.from_columns(columns()).save(tmp_path / "a" / "clips.arrow")
    assert as_lists(ClipTable.open(table.path)) == columns()
    assert os.listdir(tmp_path / "a") == ["clips.arrow"]
    assert len(pickle.dumps(table)) < 300
    assert as_lists(pickle.loads(pickle.dumps(table))) == columns()


def test_table_in_memory_pickles_only_its_own_rows():
    many = ClipTable.from_columns(columns(5000), store="/somewhere")
    few = pickle.dumps(many.select([7, 3]))
    assert len(few) < 5000
    assert pickle.loads(few).column("start").tolist() == [7.0, 3.0]
    assert pickle.loads(few).store == "/somewhere"


def test_opening_maps_the_file_instead_of_reading_it(tmp_path):
    path = ClipTable.from_columns(columns(50_000)).save(tmp_path / "clips.arrow").path
    before = pa.total_allocated_bytes()
    table = ClipTable.open(path)
    assert table.cell(49_999, "label") == 49_999
    assert pa.total_allocated_bytes() - before < os.path.getsize(path) / 10


def test_store_inside_the_folder_moves_with_it(tmp_path):
    inside = ClipTable.from_columns(columns(), store=tmp_path / "old" / "store").save(tmp_path / "old" / "clips.arrow")
    outside = ClipTable.from_columns(columns(), store=tmp_path / "store").save(tmp_path / "old" / "other.arrow")
    assert inside.store == str(tmp_path / "old" / "store")
    (tmp_path / "old").rename(tmp_path / "new")
    assert ClipTable.open(tmp_path / "new" / "clips.arrow").store == str(tmp_path / "new" / "store")
    assert ClipTable.open(tmp_path / "new" / "other.arrow").store == outside.store == str(tmp_path / "store")
    assert ClipTable.from_columns(columns()).save(tmp_path / "none.arrow").store is None


def test_select_filter_and_only_videos():
    table = ClipTable.from_columns(columns(6), store="/somewhere")
    assert table.select([4, 0]).column("label").tolist() == [4, 0]
    assert table.filter(table.column("group") == 1).column("label").tolist() == [2, 3]
    assert table.only_videos(["v1", "v9"]).column("label").tolist() == [1, 3, 5]
    assert table.select([1]).store == "/somewhere" and table.select([1]).path is None
    with pytest.raises(ValueError, match="Rows 0 to 6 were selected, the table has 0 to 5"):
        table.select([0, 6])
    with pytest.raises(ValueError, match="one bool a clip"):
        table.filter([0, 1])
    with pytest.raises(ValueError, match="filtered away"):
        table.only_videos(["v9"])


def test_select_gathers_from_many_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_columns, "BATCH_ROWS", 7)
    monkeypatch.setattr(clips, "TAKEN_ROWS", 11)
    table = ClipTable.from_columns(columns(100)).save(tmp_path / "clips.arrow")
    assert len(table._table.to_batches()) == 15
    rows = np.random.default_rng(0).integers(0, 100, 60)
    expected = {name: [values[row] for row in rows] for name, values in columns(100).items()}
    assert as_lists(table.select(rows)) == expected
    with pytest.raises(ValueError, match="at least one clip"):
        table.select([])


@pytest.mark.slow
def test_select_gathers_more_text_than_one_array_holds():
    rows, letters = 100, 1 << 20
    batch = ClipTable.from_columns(
        {"video": ["v"] * rows, "start": [0.0] * rows, "end": [1.0] * rows, "texts": [["x" * letters]] * rows}
    )
    table = ClipTable(pa.concat_tables([batch._table] * 22))
    chosen = table.select(np.arange(len(table))[::-1])
    assert len(chosen) == 2200 and chosen._table.nbytes > 1 << 31 and len(chosen.cell(2199, "texts")[0]) == letters


def parts(sizes=(3, 0, 5), **changes):
    first = 0
    for size in sizes:
        yield ClipTable.from_columns(columns(8))._table.slice(first, size)
        first += size


def test_written_in_parts_equals_written_at_once(tmp_path):
    written = ClipTable.write(tmp_path / "parts.arrow", parts(), tmp_path / "store")
    saved = ClipTable.from_columns(columns(8), store=tmp_path / "store").save(tmp_path / "once.arrow")
    assert as_lists(written) == as_lists(saved) and written.store == saved.store


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def failing():
        yield from parts()
        raise OSError("the disk is gone")

    turned = ClipTable.from_columns(columns(8))._table.set_column(
        1, "start", [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 99.0, 7.0]]
    )
    wrong = [
        (failing(), OSError, "disk is gone"),
        ([], ValueError, "at least one clip"),
        ([*parts((8,)), turned], ValueError, r"the first is row 14 \(v0, 99.0 to 7.5\)"),
        ([*parts((8,)), turned.drop_columns(["note"])], ValueError, "columns changed from .* at row 8"),
    ]
    for tables, kind, message in wrong:
        with pytest.raises(kind, match=message):
            ClipTable.write(tmp_path / "clips.arrow", tables)
        assert os.listdir(tmp_path) == []


def test_concatenation_keeps_order_and_pickles_by_paths(tmp_path):
    first = ClipTable.from_columns(columns(5), store="/somewhere").save(tmp_path / "first.arrow")
    second = ClipTable.from_columns(columns(3), store="/somewhere").save(tmp_path / "second.arrow")
    joined = ClipTable.concatenate([first, second])
    expected = {name: values + columns(3)[name] for name, values in columns(5).items()}
    assert as_lists(joined) == expected and joined.store == "/somewhere"
    data = pickle.dumps(joined)
    assert len(data) < 600 and as_lists(pickle.loads(data)) == expected
    assert as_lists(joined.save(tmp_path / "joined.arrow")) == expected


def test_unlike_tables_do_not_concatenate():
    table = ClipTable.from_columns(columns(), store="/somewhere")
    with pytest.raises(ValueError, match="has its videos in /elsewhere, table 0 in /somewhere"):
        ClipTable.concatenate([table, ClipTable.from_columns(columns(), store="/elsewhere")])
    with pytest.raises(ValueError, match="Table 1 has the columns .* must be the same"):
        ClipTable.concatenate([table, ClipTable.from_columns(broken(note=None), store="/somewhere")])
    with pytest.raises(ValueError, match="At least one"):
        ClipTable.concatenate([])


def test_a_store_elsewhere_keeps_its_address(tmp_path):
    table = ClipTable.from_columns(columns(), store="gs://bucket/store").save(tmp_path / "clips.arrow")
    assert table.store == ClipTable.open(table.path).store == "gs://bucket/store"


def test_save_is_the_same_bytes_every_time(tmp_path):
    for name in "ab":
        ClipTable.from_columns(columns(), store=tmp_path / "store").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def broken(**changes) -> dict:
    return {name: value for name, value in (columns() | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (broken(texts=None), "without texts"),
        (broken(label=["a", "b", "c", "d"]), "Column 'label' must be of type int32"),
        (broken(texts=["one", "two", "three", "four"]), "Column 'texts' must be of type list"),
        (broken(label=[1]), "same length"),
        (broken(video=["a", None, "b", "c"]), "Column 'video' must have a value in every clip, 1 clips"),
        (broken(end=[1.0, 0.5, 9.0, 9.0]), r"first is row 1 \(v1, 1.0 to 0.5\)"),
        (broken(start=[0.0, float("nan"), 0.0, 0.0]), "first is row 1"),
        ({name: [] for name in columns()}, "at least one clip"),
        (broken(texts=[["a"], [None], ["b", None], []]), "'texts' must hold lists of sentences, 2 of their places are"),
    ],
)
def test_wrong_columns_are_named(table, message):
    with pytest.raises(ValueError, match=message):
        ClipTable.from_columns(table)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no clip table at .*absent"):
        ClipTable.open(tmp_path / "absent")
    (tmp_path / "text").write_text("not arrow")
    with pytest.raises(ValueError, match="not a clip table"):
        ClipTable.open(tmp_path / "text")
    foreign = pa.table({"video": ["a"]})
    with pa.OSFile(str(tmp_path / "foreign"), "wb") as sink, pa.ipc.new_file(sink, foreign.schema) as writer:
        writer.write_table(foreign)
    with pytest.raises(ValueError, match="needs the columns|not written by ClipTable.save"):
        ClipTable.open(tmp_path / "foreign")
    with pytest.raises(ValueError, match="must be of type double, found int64"):
        ClipTable(pa.table({**columns(), "start": pa.array([0, 1, 2, 3])}))


def test_missing_values_of_an_optional_column():
    table = ClipTable.from_columns(columns() | {"answer": [0, None, 1, None], "question": ["q", None, "q", None]})
    assert table.row(1)["answer"] is None and table.column("question") == ["q", None, "q", None]
    with pytest.raises(ValueError, match="'answer' has no value in 2 of 4 clips"):
        table.column("answer")
    with pytest.raises(ValueError, match="no column 'groups'; it has video"):
        table.column("groups")


def test_data_modules_import_without_jax():
    code = "import sys; sys.modules['jax'] = None; import vidlang.data.clips, vidlang.data.tokenizer"
    subprocess.run([sys.executable, "-c", code], check=True)
