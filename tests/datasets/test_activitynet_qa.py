"""ActivityNet-QA as published: questions and answers in two files, joined by their ids."""

import pytest

from vidlang.datasets import activitynet_qa


@pytest.fixture
def store(make_store):
    return make_store({"v_1QIUV7WYKXg": 100.0, "v_-x.0": 40.0})


@pytest.fixture
def root(write_json):
    questions = [
        {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1QIUV7WYKXg_3"},
        {"video_name": "-x.0", "question": ' where, "exactly", ', "question_id": "v_-x.0_1"},
    ]
    answers = [  # in another order than the questions
        {"answer": "café ", "type": 6, "question_id": "v_-x.0_1"},
        {"answer": "yes", "type": 3, "question_id": "v_1QIUV7WYKXg_3"},
    ]
    write_json("anet_qa_answer_list.json", ["no", "yes"])
    write_json("val_a.json", answers)
    return write_json("val_q.json", questions).parent


def test_every_value_is_read(root, store, rows_of):
    assert rows_of(activitynet_qa.load("val", root=str(root), store=store)) == [
        {"video": "v_1QIUV7WYKXg", "start": 0.0, "end": 100.0, "texts": ["yes"], "id": "v_1QIUV7WYKXg_3"}
        | {"question": "is the athlete wearing trousers", "answers": ["yes"], "kind": "yes_no"},
        {"video": "v_-x.0", "start": 0.0, "end": 40.0, "texts": ["café "], "id": "v_-x.0_1"}
        | {"question": ' where, "exactly", ', "answers": ["café "], "kind": "location"},
    ]


def test_an_answer_has_its_place_in_the_list(root, store):
    assert activitynet_qa.answer_list(str(root)) == ["no", "yes"]
    table = activitynet_qa.load("val", root=str(root), store=store, listed=True)
    assert table.column("answer").tolist() == [1, -1]


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("val_q.json", {"question": 3}, "val_q.json, item 1: 'question' must be a text, found 3"),
        ("val_q.json", {"question_id": "v_x"}, "val_q.json, item 1: val_a.json has no answer to question 'v_x'"),
        ("val_q.json", {"video_name": "gone"}, "val_q.json, item 1: video 'v_gone' is not in the chunk store"),
        ("val_a.json", {"type": "3"}, "val_a.json, item 1: 'type' must be a whole number, found '3'"),
        ("val_a.json", {"type": 9}, "val_a.json, item 1: 'type' must be 0 to 8, found 9"),
    ],
)
def test_a_wrong_value_is_named(root, store, spoil, file, edit, message):
    spoil(root / file, lambda items: items[1].update(edit))
    with pytest.raises(ValueError, match=message):
        activitynet_qa.load("val", root=str(root), store=store)


def test_unknown_videos_can_be_left_out(root, make_store):
    store = make_store({"-x.0": 40.0})
    table = activitynet_qa.load("val", root=str(root), store=store, video_name="{video}", bad_clips="drop")
    assert table.column("id") == ["v_-x.0_1"]
