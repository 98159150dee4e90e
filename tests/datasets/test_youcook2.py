"""YouCook2 as published: steps of recipes as segments, and all steps of a video as its summary."""

import pytest

from vidlang.datasets import youcook2

FILE = "youcookii_annotations_trainval.json"


def entry(subset, *steps):
    annotations = [{"segment": [s, e], "id": i, "sentence": text} for i, (s, e, text) in enumerate(steps)]
    return {"duration": 310.6, "subset": subset, "recipe_type": "113", "annotations": annotations, "video_url": ""}


@pytest.fixture
def store(make_store):
    return make_store({"xHr8X2Wpmno": 310.0, "-x.y": 100.0})


@pytest.fixture
def path(write_json):
    database = {
        "xHr8X2Wpmno": entry("validation", (41, 54, "chop, “finely” "), (68.5, 83, " add the café au lait")),
        "-x.y": entry("training", (0, 100, "stir")),
        "unread": entry("testing"),
    }
    return write_json(FILE, {"database": database})


def test_segments_are_read(path, store, rows_of):
    assert rows_of(youcook2.load("val", root=str(path.parent), store=store)) == [
        {"video": "xHr8X2Wpmno", "start": 41.0, "end": 54.0, "texts": ["chop, “finely” "], "id": "xHr8X2Wpmno_0"},
        {"video": "xHr8X2Wpmno", "start": 68.5, "end": 83.0, "texts": [" add the café au lait"], "id": "xHr8X2Wpmno_1"},
    ]
    assert youcook2.load("train", root=str(path.parent), store=store).column("id") == ["-x.y_0"]


def test_whole_videos_have_all_sentences(path, store, rows_of):
    row = {"video": "xHr8X2Wpmno", "start": 0.0, "end": 310.0, "id": "xHr8X2Wpmno"}
    for joiner, text in ((" ", "chop, “finely” add the café au lait"), (". ", "chop, “finely”. add the café au lait")):
        table = youcook2.load("val", root=str(path.parent), store=store, clips="videos", joiner=joiner)
        assert rows_of(table) == [row | {"texts": [text]}]


def test_the_list_of_mil_nce_is_read(tmp_path, store, rows_of):
    path = tmp_path / "validation_youcook.csv"
    path.write_text('end,start,task,text,video_id\n54,41,113,"chop, finely",xHr8X2Wpmno\n83.5,68,113, stir ,-x.y\n')
    assert rows_of(youcook2.load("val3350", root=str(tmp_path), store=store)) == [
        {"video": "xHr8X2Wpmno", "start": 41.0, "end": 54.0, "texts": ["chop, finely"], "id": "2"},
        {"video": "-x.y", "start": 68.0, "end": 83.5, "texts": [" stir "], "id": "3"},
    ]
    path.write_text("end,start,task,text,video_id\n54,41,113,a,xHr8X2Wpmno\n83,soon,113,b,-x.y\n")
    with pytest.raises(ValueError, match="youcook.csv, row 3, column 'start': must be a number, found 'soon'"):
        youcook2.load("val3350", root=str(tmp_path), store=store)
    path.write_text("end,start,task,texts,video_id\n54,41,113,a,xHr8X2Wpmno\n")
    with pytest.raises(ValueError, match=r"youcook.csv has no column 'text' \(did you mean 'texts'"):
        youcook2.load("val3350", root=str(tmp_path), store=store)
    with pytest.raises(ValueError, match="val3350 has segments only"):
        youcook2.load("val3350", root=str(tmp_path), store=store, clips="videos")


def test_published_folders_can_be_part_of_a_name(path, make_store):
    store = make_store({"validation/113/xHr8X2Wpmno": 310.0})
    name = "{subset}/{recipe_type}/{video}"
    table = youcook2.load("val", root=str(path.parent), store=store, clips="videos", video_name=name)
    assert table.column("video") == ["validation/113/xHr8X2Wpmno"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"segment": [41]}, r"video 'xHr8X2Wpmno', annotation 1: 'segment' must be \[start, end\], found \[41\]"),
        ({"segment": "4"}, "video 'xHr8X2Wpmno', annotation 1: 'segment' must be a list, found '4'"),
        ({"sentence": None}, "video 'xHr8X2Wpmno', annotation 1: 'sentence' must be a text, found None"),
        ({"segment": [311, 320]}, "'xHr8X2Wpmno', annotation 1: the clip 311 to 320 s .* after the video's end at 310"),
        ({"segment": [50, 40]}, "'xHr8X2Wpmno', annotation 1: the clip 50 to 40 s of video 'xHr8X2Wpmno' is none"),
    ],
)
def test_a_wrong_segment_is_named(path, store, spoil, edit, message):
    spoil(path, lambda content: content["database"]["xHr8X2Wpmno"]["annotations"][1].update(edit))
    with pytest.raises(ValueError, match=f"{FILE}, .*{message}"):
        youcook2.load("val", root=str(path.parent), store=store)


def test_clips_beyond_their_video_and_unknown_videos_can_be_left_out(path, make_store):
    store = make_store({"xHr8X2Wpmno": 60.0})
    root = str(path.parent)
    assert youcook2.load("val", root=root, store=store, bad_clips="drop").column("id") == ["xHr8X2Wpmno_0"]
    with pytest.raises(ValueError, match=f"{FILE}, video '-x.y', annotation 0: video '-x.y' is not in the chunk store"):
        youcook2.load("train", root=root, store=store)
