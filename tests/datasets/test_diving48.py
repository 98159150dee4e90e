"""Diving48 as published: whole dives with one of the vocabulary's classes."""

import pytest

from vidlang.datasets import diving48


@pytest.fixture
def store(make_store):
    return make_store({"_8Vy3dlHg2w_00000": 5.0, "x.y": 3.0})


@pytest.fixture
def path(write_json):
    write_json("Diving48_vocab.json", [["Back", "15som", "05Twis", "FREE"], ["Forward", "25som", "NoTwis", "PIKE"]])
    dives = [
        {"vid_name": "_8Vy3dlHg2w_00000", "label": 1, "start_frame": 0, "end_frame": 154},
        {"vid_name": "x.y", "label": 0, "start_frame": 0, "end_frame": 90},
    ]
    return write_json("Diving48_V2_test.json", dives)


def test_every_value_is_read(path, store, rows_of):
    root = str(path.parent)
    forward, back = "Forward, 25som, NoTwis, PIKE", "Back, 15som, 05Twis, FREE"
    assert diving48.class_names(root) == [back, forward]
    video = "_8Vy3dlHg2w_00000"
    assert rows_of(diving48.load("test", root=root, store=store)) == [
        {"video": video, "start": 0.0, "end": 5.0, "texts": [forward], "label": 1, "id": video},
        {"video": "x.y", "start": 0.0, "end": 3.0, "texts": [back], "label": 0, "id": "x.y"},
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"label": 2}, "item 1: 'label' must be 0 to 1, found 2"),
        ({"label": -1}, "item 1: 'label' must be 0 to 1"),
        ({"label": "0"}, "item 1: 'label' must be a whole number, found '0'"),
        ({"vid_name": "gone"}, "item 1: video 'gone' is not in the chunk store"),
    ],
)
def test_a_wrong_value_is_named(path, store, spoil, edit, message):
    spoil(path, lambda dives: dives[1].update(edit))
    with pytest.raises(ValueError, match=f"Diving48_V2_test.json, {message}"):
        diving48.load("test", root=str(path.parent), store=store)


def test_a_missing_key_or_vocabulary_is_named(path, store, spoil):
    spoil(path, lambda dives: dives[0].pop("vid_name"))
    with pytest.raises(ValueError, match="Diving48_V2_test.json, item 0: there is no 'vid_name'"):
        diving48.load("test", root=str(path.parent), store=store)
    (path.parent / "Diving48_vocab.json").unlink()
    with pytest.raises(ValueError, match="there is no Diving48_vocab.json"):
        diving48.load("test", root=str(path.parent), store=store)


def test_unknown_videos_can_be_left_out(path, make_store):
    table = diving48.load("test", root=str(path.parent), store=make_store({"x.y": 3.0}), bad_clips="drop")
    assert table.column("id") == ["x.y"]
