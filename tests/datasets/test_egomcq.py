"""EgoMCQ and SummaryMCQ as published: every question has all its clips, and a wrong one is named."""

import pytest

from vidlang.datasets import egomcq

UIDS = ["uid-a", "uid-b", "uid-c"]


@pytest.fixture(scope="module")
def store(make_store):
    return make_store(dict.fromkeys(UIDS, 100.0))


def clip(uid, start, text, verbs="[3]", nouns="[1, 2]"):
    """A clip as the files have it: the columns of egoclip.csv."""
    return {
        "clip_idx": 7,
        "video_uid": uid,
        "video_dur": 100.0,
        "narration_source": "narration_pass_1",
        "narration_ind": 4,
        "narration_time": start + 1,
        "clip_start": start,
        "clip_end": start + 1.5,
        "clip_text": text,
        "tag_verb": verbs,
        "tag_noun": nouns,
    }


def question(number, kind, answer, choices=5):
    clips = {
        str(i): clip(UIDS[(number + i * (kind != 2)) % 3], 10 * number + i, f"text {number}-{i}")
        for i in range(choices)
    }
    return {"query": clip("uid-a", 0.0, f"query {number}"), "choices": clips, "answer": answer, "types": kind}


@pytest.fixture
def content():
    return {str(number): question(number, kind, answer) for number, kind, answer in [(0, 1, 4), (1, 2, 0), (2, 1, 2)]}


@pytest.fixture
def load(write_json, content, store, tmp_path):
    """load() reads what `content` holds now."""

    def call(split="egomcq", **options):
        write_json(egomcq.FILES[split], content)
        return egomcq.load(split, root=str(tmp_path), store=store, **options)

    return call


def test_every_clip_of_every_question_is_there(load, content, rows_of):
    # The order of a published object is not the order of its numbers.
    for number in range(3, 12):
        content[str(number)] = question(number % 9, 1, 1)
    content["2"], content["11"] = content.pop("2"), content.pop("11")
    expected = [
        {
            "video": choice["video_uid"],
            "start": choice["clip_start"],
            "end": choice["clip_end"],
            "verbs": [3],
            "nouns": [1, 2],
            "texts": [content[str(number)]["query"]["clip_text"]],
            "query": number,
            "choice": int(place),
            "answer": content[str(number)]["answer"],
            "kind": {1: "inter", 2: "intra"}[content[str(number)]["types"]],
        }
        for number in range(12)
        for place, choice in content[str(number)]["choices"].items()
    ]
    assert rows_of(load()) == expected


def test_summaries_are_a_kind_of_their_own(load, content):
    content.clear()
    content["0"] = question(0, 3, 1)
    table = load("summarymcq")
    assert set(table.column("kind")) == {"summary"} and table.column("answer").tolist() == [1] * 5


def test_values_may_be_written_as_texts_and_start_before_the_video(load, content):
    choice = content["1"]["choices"]["3"]
    choice |= {"clip_start": "-2.5", "clip_end": "4", "tag_verb": [8, 9], "tag_noun": "[]"}
    row = load().row(8)
    assert (row["start"], row["end"], row["verbs"], row["nouns"]) == (0, 4, [8, 9], [])


def test_a_question_is_left_out_as_a_whole(load, content, caplog):
    content["1"]["choices"]["2"]["video_uid"] = "uid-z"
    with pytest.raises(
        ValueError, match="egomcq.json, question '1', choice '2': video 'uid-z' is not in the chunk store"
    ):
        load()
    assert load(bad_clips="drop").column("query").tolist() == [0] * 5 + [2] * 5
    assert "left out 1 questions of 3 that lack a clip" in caplog.text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("1", "answer"), 5, "question '1': 'answer' must be 0 to 4, found 5"),
        (("1", "types"), 7, r"question '1': 'types' must be 1 \(inter\), 2 \(intra\) or 3 \(summary\), found 7"),
        (("1", "query", "clip_text"), None, "question '1', query: 'clip_text' must be a text, found None"),
        (("1", "choices", "2", "clip_start"), "soon", "question '1', choice '2': 'clip_start' must be a number"),
        (("1", "choices", "2", "clip_end"), float("nan"), "choice '2': 'clip_end' must be a number, found nan"),
        (
            ("1", "choices", "2", "clip_start"),
            100.5,
            "choice '2': the clip 100.5 to 13.5 s of video .uid-b. starts after the video's end",
        ),
        (("1", "choices", "2", "tag_verb"), "[x]", "choice '2': 'tag_verb': must be a list of whole numbers, found"),
        (("1", "choices", "2", "tag_verb"), ["x"], "choice '2': 'tag_verb' must be a list of whole numbers, found"),
        (("1", "choices"), {"1": {}, "2": {}}, "question '1': the choices must be numbered from \"0\" on, found 1, 2"),
        (("1", "choices"), {"0": {}}, "question '1': the choices must be numbered"),
        (("1", "choices", "2"), {"video": "uid-a"}, "question '1', choice '2': there is no 'clip_start'"),
        (("first",), {}, "egomcq.json: questions must be numbered, found 'first'"),
    ],
)
def test_a_wrong_value_is_named(load, content, path, value, message):
    record = content
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        load()
