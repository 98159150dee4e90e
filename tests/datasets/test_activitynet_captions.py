"""ActivityNet Captions as published: events with a sentence each, and all of a video's sentences as one paragraph."""

import pytest

from vidlang.datasets import activitynet_captions

FILES = {"train": "train.json", "val1": "val_1.json", "val2": "val_2.json"}
LONG, SHORT = "v_QOlSCBRmfWY", "v_-x.y"


@pytest.fixture
def store(make_store):
    return make_store({LONG: 82.0, SHORT: 12.0})


@pytest.fixture
def path(write_json):
    content = {
        LONG: {
            "duration": 82.73,
            "timestamps": [[0.83, 19.86], [17, 60.81]],
            "sentences": ["A young woman, “dancing”.", " She is in a café. "],
        },
        SHORT: {"duration": 12.01, "timestamps": [[0, 12.01]], "sentences": ["He runs."]},
    }
    return write_json("val_1.json", content)


@pytest.fixture
def load(path, store, rows_of):
    return lambda **options: rows_of(activitynet_captions.load("val1", root=str(path.parent), store=store, **options))


def row(video, start, end, text, identity):
    return {"video": video, "start": start, "end": end, "texts": [text], "id": identity}


def test_events_are_read(load):
    assert load() == [
        row(LONG, 0.83, 19.86, "A young woman, “dancing”.", f"{LONG}_0"),
        row(LONG, 17.0, 60.81, " She is in a café. ", f"{LONG}_1"),
        row(SHORT, 0.0, 12.01, "He runs.", f"{SHORT}_0"),
    ]


def test_whole_videos_have_paragraphs(load):
    assert load(clips="videos") == [
        row(LONG, 0.0, 82.0, "A young woman, “dancing”. She is in a café.", LONG),
        row(SHORT, 0.0, 12.0, "He runs.", SHORT),
    ]
    assert load(clips="videos", joiner="\n")[0]["texts"] == ["A young woman, “dancing”.\nShe is in a café."]


def test_only_the_first_seconds_are_kept(load):
    assert [row["end"] for row in load(clips="videos", first_seconds=16)] == [16.0, 12.0]
    assert [row["end"] for row in load(first_seconds=16)] == [16.83, 33.0, 12.01]


@pytest.mark.parametrize(("split", "file"), FILES.items())
def test_each_split_has_its_file(write_json, store, split, file):
    path = write_json(file, {SHORT: {"duration": 12, "timestamps": [[1, 2]], "sentences": [split]}})
    assert activitynet_captions.load(split, root=str(path.parent), store=store).column("texts") == [[split]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"sentences": ["a"]}, "video 'v_QOlSCBRmfWY': it has 1 sentences and 2 timestamps"),
        ({"sentences": ["a", 2]}, "video 'v_QOlSCBRmfWY': 'sentences' must be a text or a list of texts, its item 1"),
        ({"timestamps": [[0, 1], [2, "x"]]}, "video 'v_QOlSCBRmfWY': timestamp 1 must be two numbers"),
        ({"timestamps": [[0, 1], [9, 2]]}, "video 'v_QOlSCBRmfWY', sentence 1: the clip 9 to 2 s .* is none"),
        (
            {"timestamps": [[0, 1], [82, 83]]},
            "video .v_QOlSCBRmfWY., sentence 1: .* starts after the video.s end at",
        ),
    ],
)
def test_a_wrong_event_is_named(path, load, spoil, edit, message):
    spoil(path, lambda content: content[LONG].update(edit))
    with pytest.raises(ValueError, match=f"val_1.json, {message}"):
        load()


def test_wrong_events_and_unknown_videos_can_be_left_out(path, spoil, make_store):
    spoil(path, lambda content: content[LONG].update(timestamps=[[19, 3], [17, 60]]))
    store = make_store({LONG: 82.0})
    root = str(path.parent)
    assert activitynet_captions.load("val1", root=root, store=store, bad_clips="drop").column("id") == [f"{LONG}_1"]
    with pytest.raises(ValueError, match="sentence 0: the clip 19 to 3 s of video .* is none"):
        activitynet_captions.load("val1", root=root, store=store)


def test_a_negative_length_is_refused(load):
    with pytest.raises(ValueError, match="first_seconds must be 0 .* or more, found -1"):
        load(first_seconds=-1)
