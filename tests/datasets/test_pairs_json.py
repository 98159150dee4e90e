"""Singularity's lists: one format for retrieval, for a choice of captions and for questions."""

import pytest

from vidlang.datasets import pairs_json

PAIRS = [
    {"video": "a.mp4", "caption": 'one, "quoted" caption'},
    {"video": "dir/b.c.webm", "caption": [" A man. ", "Ünïcode ", ""]},
    {"image": "d.jpg", "caption": "an image"},
]


@pytest.fixture
def store(make_store):
    return make_store({"a": 10.0, "dir/b.c": 3.0, "d": 1.0})


@pytest.fixture
def load(tmp_path, store, rows_of):
    return lambda split, **options: rows_of(pairs_json.load(split, root=str(tmp_path), store=store, **options))


def row(video, end, texts, identity, **more):
    return {"video": video, "start": 0.0, "end": end, "texts": texts, "id": identity, **more}


def test_captions_are_a_text_or_several(write_json, load):
    write_json("my_ret_test.json", PAIRS)
    assert load("my_ret_test") == [
        row("a", 10.0, ['one, "quoted" caption'], "a.mp4"),
        row("dir/b.c", 3.0, [" A man. ", "Ünïcode ", ""], "dir/b.c.webm"),
        row("d", 1.0, ["an image"], "d.jpg"),
    ]


def test_paragraphs_join_the_captions(write_json, load):
    write_json("my_ret_test.json", PAIRS)
    texts = [row["texts"] for row in load("my_ret_test.json", joiner=" ")]
    assert texts == [['one, "quoted" caption'], ["A man. Ünïcode"], ["an image"]]


def test_only_the_first_seconds_are_kept(write_json, load):
    write_json("my_ret_test.json", PAIRS[:1])
    assert [load("my_ret_test", first_seconds=seconds)[0]["end"] for seconds in (0, 3.5)] == [10.0, 3.5]


def test_rows_of_one_label_share_a_caption(write_json, load):
    items = [{"video": ["a.mp4", "d.mp4"], "caption": "Opening something"}, {"video": "dir/b.c.mp4", "caption": "x"}]
    items.append({"video": "a.mp4", "caption": "Opening something"})
    write_json("ssv2_ret_template_val_small.json", items)
    rows = load("ssv2_ret_template_val_small", shared=True)
    assert [(row["video"], row["label"], row["texts"]) for row in rows] == [
        ("a", 0, ["Opening something"]),
        ("d", 0, ["Opening something"]),
        ("dir/b.c", 1, ["x"]),
        ("a", 0, ["Opening something"]),
    ]
    with pytest.raises(ValueError, match="small.json, item 0: 2 videos share a caption; .* with shared=True"):
        load("ssv2_ret_template_val_small")


def test_choices_keep_their_places(write_json, load, spoil):
    captions = ["a", "b", "c, d", "e", "f"]
    path = write_json("msrvtt_mc_test.json", [{"video": "a.mp4", "caption": captions, "answer": 2}])
    assert load("msrvtt_mc_test", task="choice") == [row("a", 10.0, ["c, d"], "a.mp4", choices=captions, answer=2)]
    spoil(path, lambda items: items[0].update(answer=-1))
    with pytest.raises(ValueError, match="test.json, item 0: 'answer' must be 0 to 4, found -1"):
        load("msrvtt_mc_test", task="choice")


def test_questions_have_any_ids_and_answers(write_json, load, tmp_path):
    items = [
        {"video": "a.mp4", "question": "what?", "answer": "ball", "question_id": 17},
        {"video": "a.mp4", "question": " who? ", "answer": ["the man", "man"], "question_id": "q_2"},
        {"image": "d.jpg", "question": "where?", "question_id": 4},
    ]
    write_json("qa.json", items)
    write_json("qa_answer_list.json", ["man", "ball"])
    assert pairs_json.answer_list(str(tmp_path), "qa_answer_list") == ["man", "ball"]
    assert load("qa", task="questions", answers="qa_answer_list") == [
        row("a", 10.0, ["ball"], "17", question="what?", answers=["ball"], answer=1),
        row("a", 10.0, ["the man", "man"], "q_2", question=" who? ", answers=["the man", "man"], answer=-1),
        row("d", 1.0, [], "4", question="where?", answers=[], answer=-1),
    ]
    write_json("qa.json", [{"video": "a.mp4", "question": "what?", "answer": "ball"}])
    assert load("qa", task="questions") == [row("a", 10.0, ["ball"], "a.mp4", question="what?", answers=["ball"])]


@pytest.mark.parametrize(
    ("item", "task", "message"),
    [
        ({"vide": "a.mp4", "caption": "x"}, "retrieval", r"item 1: there is no 'video' \(did you mean 'vide'"),
        ({"video": "a.mp4", "captions": "x"}, "retrieval", r"item 1: there is no 'caption' \(did you mean"),
        ({"video": 7, "caption": "x"}, "retrieval", "item 1: 'video' must be a text or a list of texts, found 7"),
        ({"video": "gone.mp4", "caption": "x"}, "retrieval", "item 1: video 'gone' is not in the chunk store"),
        ({"video": "a.mp4", "answer": "x"}, "questions", "item 1: there is no 'question'"),
        ("a.mp4", "retrieval", "item 1: expected an object, found 'a.mp4'"),
        ("answer", "questions", "item 1: expected an object, found 'answer'"),
    ],
)
def test_a_wrong_item_is_named(write_json, load, item, task, message):
    write_json("list.json", [{"video": "a.mp4", "caption": "x", "question": "y"}, item])
    with pytest.raises(ValueError, match=message):
        load("list", task=task)


def test_videos_that_the_store_lacks_can_be_left_out(write_json, load):
    write_json("list.json", [{"video": "a.mp4", "caption": "x"}, {"video": "gone.mp4", "caption": "y"}])
    assert [row["video"] for row in load("list", bad_clips="drop")] == ["a"]
