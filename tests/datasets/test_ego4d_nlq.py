"""Ego4D's queries as published, in Ego4D's files and in GroundNLQ's: the same rows, in the video or in the clip."""

import json
import logging

import pytest

from vidlang.datasets import ego4d_nlq


def query(text, clip, offset, **more):
    """An entry; `clip` are seconds of the clip, which starts at `offset` of its video."""
    return {
        "clip_start_sec": clip[0],
        "clip_end_sec": clip[1],
        "video_start_sec": clip[0] + offset,
        "video_end_sec": clip[1] + offset,
        "video_start_frame": 0,
        "template": "Objects: Where is X?",
        "query": text,
        "slot_x": "cup",
        "verb_x": "[verb_not_applicable]",
        **more,
    }


def clip(uid, offset, *annotations):
    return {
        "clip_uid": uid,
        "video_start_sec": offset or -4e-7,
        "video_end_sec": offset + 480.0,
        "clip_start_sec": 0,
        "clip_end_sec": 480.0,
        "source_clip_uid": uid,
        "annotations": [{"annotation_uid": key, "language_queries": queries} for key, queries in annotations],
    }


@pytest.fixture
def content():
    silent = query("", (1.0, 2.0), 20.0)
    without = query("", (1.0, 2.0), 20.0)
    del without["query"]
    first = clip(
        "clip-a", 20.0, ("note-a", [query("Where is the cup?", (5.5, 7.0), 20.0), silent, query("Who?", (9, 9), 20)])
    )
    second = clip(
        "clip-b",
        500.25,
        ("note-b", [without]),
        ("note-c", [query("What did I put?", (-0.5, 3), 500.25, template=None)]),
    )
    videos = [
        {"video_uid": "video-a", "split": "val", "clips": [first, second]},
        {
            "video_uid": "video-b",
            "split": "val",
            "clips": [clip("clip-c", 0.0, ("note-d", [query("How many?", (1, 2), 0)]))],
        },
    ]
    return {"version": "2.0", "date": "", "description": "", "metadata": "", "videos": videos}


@pytest.fixture(scope="module")
def videos(make_store):
    return make_store({"video-b": 480.0, "video-a": 1000.0})


@pytest.fixture(scope="module")
def clips(make_store):
    return make_store({"clip-a": 480.0, "clip-b": 479.5, "clip-c": 480.0})


NAMES = ("video", "start", "end", "span_start", "span_end", "texts", "id", "clip", "kind")
OBJECTS = "Objects: Where is X?"
IN_VIDEOS = [
    ("video-a", 20, 500, 25.5, 27, ["Where is the cup?"], "note-a_0", "clip-a", OBJECTS),
    ("video-a", 20, 500, 29, 29, ["Who?"], "note-a_2", "clip-a", OBJECTS),
    ("video-a", 500.25, 980.25, 500.25, 503.25, ["What did I put?"], "note-c_0", "clip-b", ""),
    ("video-b", 0, 480, 1, 2, ["How many?"], "note-d_0", "clip-c", OBJECTS),
]
IN_CLIPS = [
    ("clip-a", 0, 480, 5.5, 7, ["Where is the cup?"], "note-a_0", "clip-a", OBJECTS),
    ("clip-a", 0, 480, 9, 9, ["Who?"], "note-a_2", "clip-a", OBJECTS),
    ("clip-b", 0, 479.5, 0, 3, ["What did I put?"], "note-c_0", "clip-b", ""),
    ("clip-c", 0, 480, 1, 2, ["How many?"], "note-d_0", "clip-c", OBJECTS),
]


def as_rows(expected):
    return [dict(zip(NAMES, values, strict=True)) for values in expected]


def test_queries_in_videos_and_in_clips(write_json, content, tmp_path, videos, clips, rows_of, caplog):
    write_json("nlq_val.json", content)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert rows_of(ego4d_nlq.load("val", root=str(tmp_path), store=videos)) == as_rows(IN_VIDEOS)
    assert "nlq_val.json: left out 2 entries without a query" in caplog.text
    found = ego4d_nlq.load("val", root=str(tmp_path), store=clips, within="clips")
    assert rows_of(found) == as_rows(IN_CLIPS)


def test_the_test_split_has_no_spans(write_json, content, tmp_path, videos, rows_of):
    for record in content["videos"][0]["clips"][0]["annotations"][0]["language_queries"]:
        for key in ("clip_start_sec", "clip_end_sec", "video_start_sec", "video_end_sec"):
            del record[key]
    write_json("nlq_test_unannotated.json", content)
    expected = [{key: value for key, value in row.items() if "span" not in key} for row in as_rows(IN_VIDEOS)]
    assert rows_of(ego4d_nlq.load("test", root=str(tmp_path), store=videos)) == expected


@pytest.fixture
def lines():
    """GroundNLQ's form of the same queries."""
    durations = {"clip-a": 480.0, "clip-b": 480.0, "clip-c": 480.0}
    return [
        {
            "query": texts[0],
            "query_id": key,
            "duration": durations[uid],
            "video_id": uid,
            "query_type": "nlq",
            "timestamps": [[first or -0.5, last]],
        }
        for uid, _, _, first, last, texts, key, _, _ in IN_CLIPS
    ]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("at_once", [1, 3, 4, 100])
def test_lines_of_groundnlq(lines, tmp_path, clips, rows_of, monkeypatch, at_once):
    monkeypatch.setattr(ego4d_nlq, "LINES", at_once)
    write_lines(tmp_path / "ego4d_nlq_val_v2.jsonl", lines)
    found = rows_of(ego4d_nlq.load("groundnlq_val", root=str(tmp_path), store=clips, within="clips"))
    assert found == [row | {"end": 480, "kind": "nlq"} for row in as_rows(IN_CLIPS)]


def test_narrations_as_queries_and_queries_without_answer(lines, tmp_path, clips):
    for record in lines:
        record["narration_query"] = record.pop("query")
    write_lines(tmp_path / "format_unique_pretrain_data.jsonl", lines)
    table = ego4d_nlq.load("narrations", root=str(tmp_path), store=clips, within="clips")
    assert table.column("texts") == [row[5] for row in IN_CLIPS] and table.column("span_end").tolist() == [7, 9, 3, 2]
    for record in lines:
        record["query"] = record.pop("narration_query")
        del record["timestamps"]
    write_lines(tmp_path / "ego4d_nlq_test_v2.jsonl", lines)
    table = ego4d_nlq.load("groundnlq_test", root=str(tmp_path), store=clips, within="clips")
    assert len(table) == 4 and "span_start" not in table.columns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": "clip-z"}, "line 2: video 'clip-z' is not in the chunk store"),
        ({"timestamps": [[1, 2], [3, 4]]}, r"line 2: 'timestamps' must hold one \[start, end\], found 2"),
        ({"timestamps": [[1]]}, "line 2: 'timestamps'"),
        ({"duration": None}, "line 2: 'duration' must be a number, found None"),
        ({"query_id": 7}, "line 2: 'query_id' must be a text, found 7"),
    ],
)
def test_a_wrong_line_is_named(lines, tmp_path, clips, change, message):
    lines[1] |= change
    write_lines(tmp_path / "ego4d_nlq_val_v2.jsonl", lines)
    with pytest.raises(ValueError, match="ego4d_nlq_val_v2.jsonl, " + message):
        ego4d_nlq.load("groundnlq_val", root=str(tmp_path), store=clips, within="clips")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda clip: clip.update(video_start_sec=1000),
            "video 0, clip 0, annotation 0, query 0: the clip 1000 to 500 s",
        ),
        (lambda clip: clip.pop("clip_uid"), "nlq_val.json, video 0, clip 0: there is no 'clip_uid' .did you mean"),
        (lambda clip: clip.update(annotations=None), "video 0, clip 0: 'annotations' must be a list, found None"),
        (lambda clip: clip.update(annotations=[3]), "clip 0, annotation 0: 'annotation' must be an object, found 3"),
        (
            lambda clip: clip["annotations"][0]["language_queries"][2].pop("video_end_sec"),
            r"annotation 0, query 2: there is no 'video_end_sec' \(did you mean",
        ),
    ],
)
def test_a_wrong_value_is_named(write_json, content, tmp_path, videos, change, message):
    change(content["videos"][0]["clips"][0])
    write_json("nlq_val.json", content)
    with pytest.raises(ValueError, match=message):
        ego4d_nlq.load("val", root=str(tmp_path), store=videos)


def test_an_unknown_video_and_a_wrong_choice_are_named(write_json, content, tmp_path, clips):
    write_json("nlq_val.json", content)
    with pytest.raises(ValueError, match="annotation 0, query 0: video 'video-a' is not in the chunk store"):
        ego4d_nlq.load("val", root=str(tmp_path), store=clips)
    (tmp_path / "ego4d_nlq_val_v2.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="split 'groundnlq_val' knows only clips: say within='clips'"):
        ego4d_nlq.load("groundnlq_val", root=str(tmp_path), store=clips)
