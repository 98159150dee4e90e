"""AGQA as published: one JSON object too large to read at once, read piece by piece."""

import pytest

from vidlang.datasets import agqa

FILE = "train_balanced.txt"


def question(text, answer, video, **more):
    tags = {"global": ["obj-rel", "exists"], "local": "o4-r7", "ans_type": "binary", "steps": 3}
    tags |= {"semantic": "object", "structural": "verify", "sg_grounding": {"1": []}, "program": 'Query(["x", {}])'}
    return {"question": text, "answer": answer, "video_id": video, **tags, **more}


ITEMS = {
    "VNQC8-1": question('Did they, "really", sit?', "Yes", "VNQC8"),
    "VNQC8-2": question("What {was} \\ it: café?", "the 2nd, “bag” ", "VNQC8", ans_type="open", structural="query"),
    "a.b-1": question("Which, } ]?", "No", "a.b", semantic="action", **{"global": []}),
}


@pytest.fixture
def store(make_store):
    return make_store({"VNQC8": 30.0, "a.b": 7.0})


@pytest.fixture
def path(write_json):
    return write_json(FILE, ITEMS)


def test_every_value_is_read(path, store, rows_of):
    rows = rows_of(agqa.load("train", root=str(path.parent), store=store))
    assert rows == [
        {"video": item["video_id"], "start": 0.0, "end": end, "texts": [item["answer"]], "answers": [item["answer"]]}
        | {"id": key, "question": item["question"], "kind": item["ans_type"], "reasoning": item["global"]}
        | {name: item[name] for name in ("semantic", "structural")}
        for (key, item), end in zip(ITEMS.items(), [30.0, 30.0, 7.0], strict=True)
    ]


def test_batches_of_rows_are_one_table(path, store, monkeypatch):
    whole = agqa.load("train", root=str(path.parent), store=store)
    monkeypatch.setattr(agqa, "_BATCH", 2)
    pieces = agqa._questions(path, str, None)
    assert pieces.column("id").num_chunks == 2
    assert pieces.column("question").to_pylist() == whole.column("question")


def test_answers_of_the_training_questions_have_places(path, store, write_json):
    root = str(path.parent)
    assert agqa.answer_list(root) == ["No", "Yes", "the 2nd, “bag” "]
    write_json("test_balanced.txt", {"x": ITEMS["VNQC8-1"], "y": question("Who?", "Ann", "a.b")})
    assert agqa.load("test", root=root, store=store, listed=True).column("answer").tolist() == [1, -1]
    write_json(FILE, {"x": question("Who?", "Ann", "a.b")})
    assert agqa.load("test", root=root, store=store, listed=True).column("answer").tolist() == [-1, 0]
    path.unlink()
    assert "answer" not in agqa.load("test", root=root, store=store).columns


def test_files_may_lie_in_the_published_folder(write_json, store, tmp_path):
    write_json(f"AGQA_balanced/{FILE}", ITEMS)
    assert len(agqa.load("train", root=str(tmp_path), store=store)) == 3


def test_a_broken_file_is_refused(path, store):
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"train_balanced.txt is not one JSON object: .*is the download complete"):
        agqa.load("train", root=str(path.parent), store=store)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"answer": 2}, "question 'a.b-1': 'answer' must be a text, found 2"),
        ({"global": [1]}, "question 'a.b-1': 'global' must be a text or a list of texts, its item 0 is 1"),
        ({"video_id": "gone"}, "question 'a.b-1': video 'gone' is not in the chunk store"),
    ],
)
def test_a_wrong_value_is_named(path, store, spoil, edit, message):
    spoil(path, lambda content: content["a.b-1"].update(edit))
    with pytest.raises(ValueError, match=f"{FILE}, {message}"):
        agqa.load("train", root=str(path.parent), store=store)


def test_empty_files_and_missing_keys_are_named(write_json, store, tmp_path):
    write_json(FILE, {})
    with pytest.raises(ValueError, match="train_balanced.txt has no questions"):
        agqa.load("train", root=str(tmp_path), store=store)
    write_json(FILE, {"q1": {key: value for key, value in ITEMS["a.b-1"].items() if key != "question"}})
    with pytest.raises(ValueError, match="train_balanced.txt, question 'q1': there is no 'question'"):
        agqa.load("train", root=str(tmp_path), store=store)


def test_unknown_videos_can_be_left_out(path, make_store):
    table = agqa.load("train", root=str(path.parent), store=make_store({"a.b": 7.0}), bad_clips="drop")
    assert table.column("id") == ["a.b-1"]
