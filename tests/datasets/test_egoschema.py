"""EgoSchema as published: all questions, or those whose answers are known."""

import pytest

from vidlang.datasets import egoschema

KEYS = ["uid-c", "uid-a", "uid-b"]


@pytest.fixture(scope="module")
def store(make_store):
    return make_store(dict.fromkeys(KEYS, 180.0))


@pytest.fixture
def files(write_json, tmp_path):
    """The published files, as values that a test may change before it calls save()."""

    class Files:
        questions = [
            {"q_uid": key, "google_drive_id": "x", "question": f"What does C do in {key}?"}
            | {f"option {place}": f"answer {place} of {key}" for place in range(5)}
            for key in KEYS
        ]
        answers = {"uid-b": 4, "uid-c": 0}

        def load(self, split, store, **options):
            write_json("questions.json", self.questions)
            write_json("subset_answers.json", self.answers)
            return egoschema.load(split, root=str(tmp_path), store=store, **options)

    return Files()


def row(key, **more):
    found = {"video": key, "start": 0, "end": 180, "texts": [], "question": f"What does C do in {key}?"}
    return found | {"choices": [f"answer {place} of {key}" for place in range(5)], "id": key} | more


def test_all_questions_and_those_with_answers(files, store, rows_of):
    assert rows_of(files.load("full", store)) == [row(key) for key in KEYS]
    assert rows_of(files.load("subset", store)) == [row("uid-c", answer=0), row("uid-b", answer=4)]


def test_videos_may_have_other_names(files, make_store):
    store = make_store({f"clips/{key}": 180.0 for key in KEYS})
    assert files.load("full", store, video_name="clips/{video}").column("video") == [f"clips/{key}" for key in KEYS]


def test_wrong_values_are_named(files, store, make_store):
    files.answers["uid-b"] = 5
    with pytest.raises(ValueError, match="subset_answers.json: 'uid-b' must be 0 to 4, found 5"):
        files.load("subset", store)
    files.answers = {"uid-z": 1}
    with pytest.raises(ValueError, match="subset_answers.json: 'uid-z' is no question of .*questions.json"):
        files.load("subset", store)
    with pytest.raises(ValueError, match="questions.json, question 0: video 'uid-c' is not in the chunk store"):
        files.load("full", make_store({"uid-a": 1.0, "uid-b": 1.0}))
    # The first version of the file had no questions.
    del files.questions[1]["question"]
    with pytest.raises(ValueError, match="questions.json, question 1: there is no 'question'"):
        files.load("full", store)
    files.questions[1] |= {"question": "q", "option 4": None}
    with pytest.raises(ValueError, match="questions.json, question 1: 'option 4' must be a text, found None"):
        files.load("full", store)
