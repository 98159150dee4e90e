"""DiDeMo as published: descriptions joined to paragraphs, or each with the moment that most people chose."""

import pytest

from vidlang.datasets import didemo

LONG, SHORT = "12090392@N02_13482799053_87ef417396.mov", "1@N0_2.5"


@pytest.fixture
def store(make_store):
    return make_store({"12090392@N02_13482799053_87ef417396": 60.0, SHORT: 28.2})


@pytest.fixture
def path(write_json):
    def item(number, video, description, times):
        shared = {"num_segments": 6, "dl_link": "http://x", "reference_description": ""}
        return shared | {"annotation_id": number, "video": video, "description": description, "times": times}

    items = [
        item(7, LONG, " a “cat”, then", [[0, 0], [1, 4], [1, 4]]),
        item(9, SHORT, "première scène", [[5, 5], [4, 5], [4, 5], [5, 5]]),
        item(12, LONG, "the end ", [[2, 2]]),
    ]
    return write_json("test_data.json", items)


@pytest.fixture
def load(path, store, rows_of):
    return lambda **options: rows_of(didemo.load("test", root=str(path.parent), store=store, **options))


def row(video, start, end, text, identity):
    return {"video": video, "start": start, "end": end, "texts": [text], "id": identity}


def test_a_video_has_all_its_descriptions_and_its_first_half_minute(load):
    bare = LONG.removesuffix(".mov")
    assert load() == [
        row(bare, 0.0, 30.0, "a “cat”, then the end", bare),
        row(SHORT, 0.0, 30.0, "première scène", SHORT),
    ]
    assert [(row["end"], row["texts"]) for row in load(first_seconds=0, joiner="; ")] == [
        (60.0, ["a “cat”, then; the end"]),
        (28.2, ["première scène"]),
    ]


def test_a_moment_is_what_most_people_chose(load):
    bare = LONG.removesuffix(".mov")
    assert load(clips="moments") == [
        row(bare, 5.0, 25.0, " a “cat”, then", "7"),
        row(SHORT, 25.0, 30.0, "première scène", "9"),  # chosen as often as [4, 5], and first
        row(bare, 10.0, 15.0, "the end ", "12"),
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"times": []}, "item 1: 'times' has no moment"),
        ({"times": [[0, 1.5]]}, "item 1: a moment of 'times' must be two whole numbers"),
        ({"times": [[0]]}, r"item 1: a moment of 'times' must be \[start, end\], found \[0\]"),
        ({"times": [[6, 6]]}, "item 1: the clip 30 to 35 s of video '1@N0_2.5' starts after the video's end"),
        ({"description": 1}, "item 1: 'description' must be a text, found 1"),
        ({"video": "gone.avi"}, "item 1: video 'gone' is not in the chunk store"),
    ],
)
def test_a_wrong_item_is_named(path, load, spoil, edit, message):
    spoil(path, lambda items: items[1].update(edit))
    with pytest.raises(ValueError, match=f"test_data.json, {message}"):
        load(clips="moments")


def test_unknown_videos_can_be_left_out(path, make_store):
    store = make_store({SHORT: 28.2})
    root = str(path.parent)
    assert didemo.load("test", root=root, store=store, bad_clips="drop").column("video") == [SHORT]
    with pytest.raises(ValueError, match="test_data.json, item 0: video '12090392@N02_13482799053_87ef417396' is not"):
        didemo.load("test", root=root, store=store)


def test_a_negative_length_is_refused(load):
    with pytest.raises(ValueError, match="first_seconds must be 0 .* or more, found -1"):
        load(first_seconds=-1)
