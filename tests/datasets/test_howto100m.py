"""HowTo100M as published: captions in three forms, widened and grouped as the reference code does, and summaries."""

import csv
import json
import logging

import numpy as np
import pytest

from vidlang.datasets import howto100m

CAPTIONS = {
    "vid-b": {"start": [0.5, 9.0, 20.25], "end": [3.0, 16.5, 20.75], "text": ["take a cup", 'pour, "slowly"', "done"]},
    "vid-a": {"start": [58], "end": [70.0], "text": ["hello"]},
    "vid-e": {"start": [], "end": [], "text": []},
}
SECONDS = {"vid-a": 90.0, "vid-b": 60.0, "vid-e": 10.0}


@pytest.fixture(scope="module")
def store(make_store):
    return make_store(SECONDS)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "caption.json").write_text(json.dumps(CAPTIONS))
    (tmp_path / "raw_caption_superclean.json").write_text(json.dumps(CAPTIONS, indent=1))
    folder = tmp_path / "howto100m_captions"
    folder.mkdir()
    for video, captions in CAPTIONS.items():
        if captions["start"]:
            with (folder / f"{video}.csv").open("w", newline="") as file:
                rows = zip(*captions.values(), strict=True)
                csv.writer(file).writerows([list(captions), *rows])
    (tmp_path / "summaries.csv").write_text('video_id,summary\nvid-a,"Cooks, then eats."\nvid-b,Pours.\n')
    return tmp_path


def row(video, start, end, *texts):
    return {"video": video, "start": start, "end": end, "texts": list(texts)}


PLAIN = [
    row("vid-b", 0.5, 3, "take a cup"),
    row("vid-b", 9, 16.5, 'pour, "slowly"'),
    row("vid-b", 20.25, 20.75, "done"),
    row("vid-a", 58, 70, "hello"),
]


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_captions_are_rows_in_all_forms(root, store, rows_of, monkeypatch, at_once):
    monkeypatch.setattr(howto100m, "ROWS", at_once)
    for split in ("caption", "superclean"):
        assert rows_of(howto100m.load(split, root=str(root), store=store, min_time=0)) == PLAIN
    # Files come in the order of their names.
    assert rows_of(howto100m.load("csv", root=str(root), store=store, min_time=0)) == PLAIN[3:] + PLAIN[:3]


def test_short_clips_are_widened(root, store):
    assert howto100m.load("caption", root=str(root), store=store, min_time=0).cell(0, "end") == 3
    table = howto100m.load("caption", root=str(root), store=store)
    spans = list(zip(table.column("start").tolist(), table.column("end").tolist(), strict=True))
    assert spans == [(0, 5), (9, 16.5), (18, 23), (58, 70)]


def reference_widened(start, end, min_time):
    if end - start < min_time:
        missing = min_time - end + start
        start = max(0, start - missing / 2)
        end = start + min_time
    return start, end


def reference_nearest(start, end, place, count):
    """Grows a run of captions one by one; written from the description of the published rule."""
    low = high = place
    for size in range(1, count):
        if low == 0:
            return 0
        if high == len(start) - 1:
            return low - (count - size)
        if end[high] - start[low - 1] < end[high + 1] - start[low]:
            low -= 1
        else:
            high += 1
    return low


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_widening_and_neighbours_equal_one_caption_at_a_time(count):
    rng = np.random.default_rng(count)
    for captions in (0, 1, 2, 3, 7, 30):
        start = np.cumsum(rng.uniform(0, 6, captions))
        end = start + rng.uniform(0, 9, captions)
        wide = list(zip(*(values.tolist() for values in howto100m.widened(start, end, 4.0)), strict=True))
        np.testing.assert_allclose(
            np.reshape(wide, (-1, 2)),
            np.reshape([reference_widened(s, e, 4.0) for s, e in zip(start, end, strict=True)], (-1, 2)),
        )
        first = [reference_nearest(start, end, place, count) for place in range(captions)]
        expected = [[max(0, min(captions - 1, low + i)) for i in range(count)] for low in first]
        assert howto100m.nearest(start, end, count).tolist() == expected


def test_candidates_are_texts_of_the_clip(root, store):
    table = howto100m.load("caption", root=str(root), store=store, candidates=2)
    first, second, third = CAPTIONS["vid-b"]["text"]
    assert table.column("texts") == [[first, second], [second, third], [second, third], ["hello"]]


def test_summaries_are_of_whole_videos(root, store, rows_of):
    found = rows_of(howto100m.load("summaries", root=str(root), store=store))
    assert found == [row("vid-a", 0, 90, "Cooks, then eats."), row("vid-b", 0, 60, "Pours.")]


def test_what_is_no_text_is_left_out_and_numbers_stay(root, store, caplog):
    content = {"vid-a": {"start": [0, 1, "2.5"], "end": [1, 2, 99], "text": [None, "one", "two"]}}
    (root / "caption.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, logger="absl"):
        table = howto100m.load("caption", root=str(root), store=store, min_time=0)
    assert table.column("texts") == [["one"], ["two"]] and table.column("end").tolist() == [2, 99]
    assert "caption.json: left out 1 captions that are no text" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"start": [1, 95, 2], "end": [2, 96, 4]},
            "caption.json, video 1, caption 1: the clip 93 to 98 s .* starts after",
        ),
        ({"text": [None, "b", "c"], "start": [1, 2, 80]}, "caption.json, video 1, caption 2: the clip 80 to 4 s"),
        ({"start": [1, 8, 2]}, "caption.json, video 1, caption 1: the clip 8 to 3 s of video 'vid-a' is none"),
        ({"start": [1, 2]}, "video 'vid-a': start, end and text must have the same length, found 2, 3 and 3"),
        ({"start": [1, "x", 2]}, "video 'vid-a', caption 1: 'start' must be a number, found 'x'"),
        ({"end": [1, None, 2]}, "video 'vid-a', caption 1: 'end' must be a number, found None"),
        ({"text": "a b"}, "video 'vid-a': 'text' must be a list, found 'a b'"),
    ],
)
def test_a_wrong_caption_is_named(root, store, change, message):
    wrong = {"start": [1, 2, 3], "end": [2, 3, 4], "text": ["a", "b", "c"]} | change
    (root / "caption.json").write_text(json.dumps({"vid-b": CAPTIONS["vid-b"], "vid-a": wrong}))
    with pytest.raises(ValueError, match=message):
        howto100m.load("caption", root=str(root), store=store)


def test_wrong_files_are_named(root, make_store):
    store = make_store({"vid-b": 60.0})
    with pytest.raises(ValueError, match="caption.json, video 1, caption 0: video 'vid-a' is not in the chunk store"):
        howto100m.load("caption", root=str(root), store=store)
    assert len(howto100m.load("caption", root=str(root), store=store, bad_clips="drop")) == 3
    with pytest.raises(ValueError, match="summaries.csv, row 2: video 'vid-a' is not in the chunk store"):
        howto100m.load("summaries", root=str(root), store=store)
    (root / "howto100m_captions" / "vid-b.csv").write_text("start,end,texts\n1,2,a\n")
    with pytest.raises(ValueError, match="vid-b.csv has no column 'text' .did you mean 'texts'"):
        howto100m.load("csv", root=str(root), store=store, bad_clips="drop")
    with pytest.raises(ValueError, match="min_time must be at least 0 and candidates 1, found 5.0 and 0"):
        howto100m.load("caption", root=str(root), store=store, candidates=0)
