"""Perception Test as published: questions with three choices, about videos up to the frame that gives them away."""

import pytest

from vidlang.datasets import perception_test


@pytest.fixture
def store(make_store):
    return make_store({"video_10": 20.0, "video_9": 30.0, "video_1": 5.0})


def question(number, answer=1, **more):
    row = {"id": number, "question": f"Is it “so”, {number}? ", "options": [f"yes, {number}", "café", " no "]}
    tags = {"area": "physics", "reasoning": "predictive", "tag": ["motion"]}
    return row | tags | ({} if answer is None else {"answer_id": answer}) | more


def video(*questions, rate=30.0):
    metadata = {"split": "valid", "video_id": "", "frame_rate": rate, "num_frames": 600, "resolution": [1080, 1920]}
    return {"metadata": metadata, "object_tracking": [], "mc_question": list(questions)}


@pytest.fixture
def path(write_json):
    write_json("cut_frame_mapping_valid.json", {"video_10": 150, "video_9": -1})
    content = {"video_10": video(question(0, 2), question(1, 0)), "video_9": video(question(0)), "video_1": video()}
    content["video_1"]["mc_question"] = [question(3)]
    return write_json("mc_question_valid.json", content | {"no_questions": {"metadata": {}}})


def test_every_value_is_read(path, store, rows_of):
    rows = rows_of(perception_test.load("valid", root=str(path.parent), store=store))
    assert rows[0] == {
        "video": "video_10",
        "start": 0.0,
        "end": 5.0,
        "texts": [" no "],
        "choices": ["yes, 0", "café", " no "],
        "answer": 2,
        "question": "Is it “so”, 0? ",
        "kind": "physics",
        "reasoning": "predictive",
        "id": "video_10_0",
    }
    assert [(row["id"], row["end"], row["texts"], row["answer"]) for row in rows[1:]] == [
        ("video_10_1", 5.0, ["yes, 1"], 0),
        ("video_9_0", 30.0, ["café"], 1),
        ("video_1_3", 5.0, ["café"], 1),
    ]


def test_videos_need_not_be_cut(path, store):
    (path.parent / "cut_frame_mapping_valid.json").unlink()
    table = perception_test.load("valid", root=str(path.parent), store=store, cut=False)
    assert table.column("end").tolist() == [20.0, 20.0, 30.0, 5.0]
    with pytest.raises(ValueError, match="there is no cut_frame_mapping_valid.json"):
        perception_test.load("valid", root=str(path.parent), store=store)


@pytest.mark.parametrize(("frame", "rate", "end"), [(-1, 30, 30.0), (0, 30, 30.0), (1, 25, 0.04), (9, 1, 9.0)])
def test_a_cut_is_a_number_of_frames(path, store, spoil, frame, rate, end):
    spoil(path.parent / "cut_frame_mapping_valid.json", lambda cuts: cuts.update(video_9=frame))
    spoil(path, lambda content: content["video_9"]["metadata"].update(frame_rate=rate))
    assert perception_test.load("valid", root=str(path.parent), store=store).cell(2, "end") == end


def test_the_test_split_has_no_answers(write_json, store):
    path = write_json("mc_question_test.json", {"video_9": video(question(0, None))})
    table = perception_test.load("test", root=str(path.parent), store=store)
    assert "answer" not in table.columns
    assert (table.column("texts"), table.column("choices")) == ([[]], [["yes, 0", "café", " no "]])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"answer_id": 3}, "video 'video_9', question 0: 'answer_id' must be 0 to 2, found 3"),
        ({"options": "yes"}, "video 'video_9', question 0: 'answer_id' must be 0 to 0, found 1"),
        ({"options": ["a", 2]}, "video 'video_9', question 0: 'options' must be a text or a list of texts, its item 1"),
        ({"area": None}, "video 'video_9', question 0: 'area' must be a text, found None"),
    ],
)
def test_a_wrong_value_is_named(path, store, spoil, edit, message):
    spoil(path, lambda content: content["video_9"]["mc_question"][0].update(edit))
    with pytest.raises(ValueError, match=f"mc_question_valid.json, {message}"):
        perception_test.load("valid", root=str(path.parent), store=store)


def test_a_wrong_cut_or_rate_is_named(path, store, spoil):
    spoil(path, lambda content: content["video_10"]["metadata"].update(frame_rate=0))
    with pytest.raises(ValueError, match="valid.json, video 'video_10': 'frame_rate' must be above 0, found 0"):
        perception_test.load("valid", root=str(path.parent), store=store)
    spoil(path.parent / "cut_frame_mapping_valid.json", lambda cuts: cuts.update(video_9="150"))
    spoil(path, lambda content: content["video_10"]["metadata"].update(frame_rate=25))
    with pytest.raises(ValueError, match="cut_frame_mapping_valid.json: 'video_9' must be a whole number, found '150'"):
        perception_test.load("valid", root=str(path.parent), store=store)


def test_unknown_videos_are_named_or_left_out(path, make_store):
    store, root = make_store({"video_9": 30.0}), str(path.parent)
    with pytest.raises(ValueError, match="valid.json, video 'video_10', question 0: video 'video_10' is not in the"):
        perception_test.load("valid", root=root, store=store)
    assert perception_test.load("valid", root=root, store=store, bad_clips="drop").column("id") == ["video_9_0"]
