"""Columns in a batch: numbers, lists that are filled up, and how well the text that was drawn fits."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data.clips import ClipTable
from vidlang.data.fields import expected_field, read_fields
from vidlang.data.pipeline import ClipSpec, train_stream

COLUMNS = {
    "video": ["a", "b", "c"],
    "start": [0.0, 0.0, 0.0],
    "end": [1.0, 1.0, 1.0],
    "texts": [["x", "y"], ["z"], ["u"]],
    "verbs": [[4, 2, 9], [], [7]],
    "label": [5, 6, 7],
    "text_weights": [[0.25, 1.0], [0.5], [0.75]],
    "note": [["p"], [], []],
    "name": ["one", "two", "three"],
}


@pytest.fixture(scope="module")
def table():
    return ClipTable.from_columns(COLUMNS)


def test_numbers_lists_and_relevancy_arrive_as_they_are_named(table):
    label, verbs, relevancy = read_fields(table, ("label", "verbs", "relevancy"))
    assert [field.name for field in (label, verbs, relevancy)] == ["label_B", "verbs_BK", "relevancy_B"]
    assert [field.value(table, 1, 0) for field in (label, relevancy)] == [6, 0.5]
    assert relevancy.value(table, 0, 1) == 1.0
    np.testing.assert_array_equal([verbs.value(table, row, 0) for row in range(3)], [[4, 2, 9], [-1] * 3, [7, -1, -1]])
    np.testing.assert_array_equal(verbs.value(table, -1, 0), [-1] * 3)  # the padding of a last batch
    assert (label.value(table, -1, 0), relevancy.value(table, -1, 0)) == (0, 0.0)


def test_what_any_table_has_is_known_before_there_is_one(table):
    for column in ("label", "relevancy"):
        assert expected_field(column) == read_fields(table, (column,))[0]
    assert (expected_field("verbs").name, expected_field("verbs").shape) == ("verbs_BK", (1,))
    assert expected_field("note") is None and expected_field("texts") is None


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("note", "'note', a column of list<.*>; a batch holds numbers and lists of whole numbers"),
        ("name", "must hold one number a clip, found string"),
        ("colour", "has no column 'colour'"),
    ],
)
def test_a_column_that_no_batch_can_hold_is_refused(table, column, words):
    with pytest.raises(ValueError, match=words):
        read_fields(table, (column,))


def test_relevancy_needs_its_column_and_a_weight_for_each_text(table):
    without = ClipTable.from_columns({name: COLUMNS[name] for name in ("video", "start", "end", "texts")})
    with pytest.raises(ValueError, match="comes from the column text_weights; the table has video, start, end, texts"):
        read_fields(without, ("relevancy",))
    (field,) = read_fields(table, ("relevancy",))
    with pytest.raises(ValueError, match="row 1 of the table has 1 text_weights and more texts"):
        field.value(table, 1, 1)


def test_an_empty_column_of_lists_has_one_place(table):
    empty = pa.table(
        {
            **{k: COLUMNS[k] for k in ("video", "start", "end", "texts")},
            "verbs": pa.array([[], [], []], pa.list_(pa.int32())),
        }
    )
    (field,) = read_fields(ClipTable(empty), ("verbs",))
    np.testing.assert_array_equal(field.value(ClipTable(empty), 0, 0), [-1])


def test_a_batch_holds_the_relevancy_of_the_text_that_it_holds(tiny_table, tiny_tokenizer):
    columns = {name: tiny_table.arrow(name).to_pylist() for name in ("video", "start", "end", "texts")}
    rng = np.random.default_rng(0)
    columns["text_weights"] = [rng.random(len(texts), np.float32).tolist() for texts in columns["texts"]]
    columns["verbs"] = [list(range(row % 4)) for row in range(len(tiny_table))]
    table = ClipTable.from_columns(columns, store=tiny_table.store)
    look = {"frames": 1, "size": 8, "times": {"name": "segments"}, "crop": {"name": "center"}}
    spec = ClipSpec(**look, text_length=6, fields=("relevancy", "verbs"))
    drawn = set()
    with train_stream(table, tiny_tokenizer, spec, seed=0, batch_size=8) as stream:
        for batch in itertools.islice(stream, 6):
            assert batch["relevancy_B"].dtype == np.float32 and batch["verbs_BK"].dtype == np.int32
            for place, row in enumerate(batch["index_B"].tolist()):
                texts = tiny_tokenizer.encode(table.cell(row, "texts"))
                (choice,) = np.flatnonzero((texts == batch["text_BL"][place]).all(axis=1))
                assert batch["relevancy_B"][place] == np.float32(table.cell(row, "text_weights")[choice])
                assert batch["verbs_BK"][place].tolist() == [k if k < row % 4 else -1 for k in range(3)]
                drawn.add(int(choice))
    assert drawn == {0, 1}


def test_clips_without_texts_go_without_a_tokenizer(tiny_table):
    columns = {name: tiny_table.arrow(name).to_pylist() for name in ("video", "start", "end", "label")}
    table = ClipTable.from_columns({**columns, "texts": [[]] * len(tiny_table)}, store=tiny_table.store)
    look = {"frames": 1, "size": 8, "times": {"name": "segments"}, "crop": {"name": "center"}}
    with train_stream(table, None, ClipSpec(**look, fields=("label",)), seed=0, batch_size=8) as stream:
        batch = next(stream)
    assert "text_BL" not in batch and batch["label_B"].tolist() == [
        table.cell(int(r), "label") for r in batch["index_B"]
    ]
    with pytest.raises(ValueError, match="clip.text_length is 6 and there is no tokenizer"):
        train_stream(table, None, ClipSpec(**look, text_length=6), seed=0, batch_size=8)
