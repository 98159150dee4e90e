"""MSRVTT-QA as published: questions with their answers, and the place of an answer in the published list."""

import pytest

from vidlang.datasets import msrvtt_qa


@pytest.fixture
def store(make_store):
    return make_store({"video0": 10.0, "video12": 8.0})


@pytest.fixture
def path(write_json):
    items = [
        {"answer": "couch", "category_id": 14, "id": 158581, "question": "what are people sitting on?", "video_id": 0},
        {"answer": " crème, “x”", "category_id": 1, "id": 7, "question": " who's that, then?", "video_id": 12},
    ]
    write_json("msrvtt_qa_answer_list.json", ["man", "couch"])
    return write_json("val_qa.json", items)


def test_every_value_is_read(path, store, rows_of):
    rows = rows_of(msrvtt_qa.load("val", root=str(path.parent), store=store))
    assert rows == [
        {"video": "video0", "start": 0.0, "end": 10.0, "texts": ["couch"], "id": "158581"}
        | {"question": "what are people sitting on?", "answers": ["couch"]},
        {"video": "video12", "start": 0.0, "end": 8.0, "texts": [" crème, “x”"], "id": "7"}
        | {"question": " who's that, then?", "answers": [" crème, “x”"]},
    ]


def test_an_answer_has_its_place_in_the_list(path, store):
    root = str(path.parent)
    assert msrvtt_qa.answer_list(root) == ["man", "couch"]
    assert msrvtt_qa.load("val", root=root, store=store, listed=True).column("answer").tolist() == [1, -1]
    (path.parent / "msrvtt_qa_answer_list.json").unlink()
    with pytest.raises(ValueError, match=r"no msrvtt_qa_answer_list.json in .*comes from Singularity"):
        msrvtt_qa.load("val", root=root, store=store, listed=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"video_id": "video12"}, "val_qa.json, item 1: 'video_id' must be a whole number, found 'video12'"),
        ({"answer": None}, "val_qa.json, item 1: 'answer' must be a text, found None"),
        ({"video_id": 13}, r"val_qa.json, item 1: video 'video13' is not in the chunk store .*did you mean 'video12'"),
    ],
)
def test_a_wrong_value_is_named(path, store, spoil, edit, message):
    spoil(path, lambda items: items[1].update(edit))
    with pytest.raises(ValueError, match=message):
        msrvtt_qa.load("val", root=str(path.parent), store=store)


def test_an_unknown_video_can_be_left_out(path, make_store):
    store = make_store({"video12": 8.0})
    assert msrvtt_qa.load("val", root=str(path.parent), store=store, bad_clips="drop").column("id") == ["7"]
