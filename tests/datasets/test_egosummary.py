"""EgoSummary and Ego4D-HCap as published: summaries, the clips inside them, and long videos."""

import json
import pickle

import pytest

from vidlang.datasets import egosummary

HEADER = (
    "clip_idx\tvideo_uid\tvideo_dur\tnarration_source\tnarration_ind\tnarration_time\tclip_start\tclip_end\tclip_text\t"
    "tag_verb\ttag_noun"
)
INSIDE = {
    "summary_start": 0.0,
    "summary_end": 300.0,
    "clip_start": [1.5, 20],
    "clip_end": [2.5, "21.5"],
    "clip_text": ["#C C picks", "#C C cuts"],
    "tag_verb": ["[93]", "[]"],
    "tag_noun": ["[1, 2]", "[3]"],
}
EMPTY = {name: [] if isinstance(value, list) else 0.0 for name, value in INSIDE.items()}


@pytest.fixture(scope="module")
def store(make_store):
    return make_store({"uid-a": 400.0, "uid-b": 1000.0})


@pytest.fixture
def root(tmp_path):
    lines = [
        HEADER,
        "0\tuid-a\t400\tsummary_pass_1\t0\t300\t0\t300\t#Summary C cooked\t[1]\t[2]",
        "1\tuid-b\t1000\tsummary_pass_2\t0\t600\t300\t600.5\t#Summary C cleaned\t[]\t[]",
        "2\tuid-b\t1000\tsummary_pass_2\t0\t900\t600\t900\t#Summary C slept\t[]\t[]",
    ]
    (tmp_path / "egosummary_full.csv").write_text("\n".join(lines) + "\n")
    hierarchy = {"#Summary C cooked": INSIDE, "#Summary C cleaned": EMPTY}
    (tmp_path / "summary_clips_hierarchy_full.json").write_text(json.dumps(hierarchy))
    captions = [("uid-b", 600.0, 604.0, "#C C picks")]
    videos = [
        {
            "vid": "uid-b",
            "start_sec": 0.5,
            "end_sec": 999,
            "segment_descriptions": ["C cooks. ", "", "C eats."],
            "segment_descriptions_pred": ["C sits."],
            "video_summary": "C spends a day at home.",
        },
        {"vid": "uid-a", "segment_descriptions": "C sleeps.", "video_summary": "C rests."},
    ]
    segments = [
        {
            "vid": "uid-a",
            "start_sec": 180,
            "end_sec": 360.0,
            "captions_pred": captions,
            "captions_gt": captions,
            "segment_description": "C cooks.",
        }
    ]
    for name, rows in {"videos_val": videos, "segments_val": segments, "clips_val": captions}.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(rows))
    (tmp_path / "videos_train_pseudo.pkl").write_bytes(pickle.dumps(videos[1:]))
    return tmp_path


def test_summaries_keep_every_value(root, store, rows_of):
    found = rows_of(egosummary.load("train", root=str(root), store=store))
    assert len({row.pop("group") for row in found}) == 3
    names = ("video", "start", "end", "texts", "verbs", "nouns", "kind")
    assert found == [
        dict(zip(names, values, strict=True))
        for values in [
            ("uid-a", 0, 300, ["#Summary C cooked"], [1], [2], "summary_pass_1"),
            ("uid-b", 300, 600.5, ["#Summary C cleaned"], [], [], "summary_pass_2"),
            ("uid-b", 600, 900, ["#Summary C slept"], [], [], "summary_pass_2"),
        ]
    ]


def test_clips_inside_a_summary_come_with_it(root, store, rows_of):
    plain = rows_of(egosummary.load("train", root=str(root), store=store))
    found = rows_of(egosummary.load("train", root=str(root), store=store, narrations=True))
    clips = [{name: row.pop(name) for name in egosummary.CLIPS} for row in found]
    assert found == plain
    assert clips[0] == {
        "clip_texts": ["#C C picks", "#C C cuts"],
        "clip_starts": [1.5, 20],
        "clip_ends": [2.5, 21.5],
        "clip_verbs": [[93], []],
        "clip_nouns": [[1, 2], [3]],
    }
    # One summary has no clip, the other is not in the file.
    assert clips[1] == clips[2] == {name: [] for name in egosummary.CLIPS}


@pytest.mark.parametrize(
    ("split", "options", "expected"),
    [
        ("videos_val", {}, [("uid-b", 0.5, 999, "C spends a day at home."), ("uid-a", 0, 400, "C rests.")]),
        ("videos_val", {"text": "segments"}, [("uid-b", 0.5, 999, "C cooks. C eats."), ("uid-a", 0, 400, "C sleeps.")]),
        ("videos_train_pseudo", {}, [("uid-a", 0, 400, "C rests.")]),
        ("segments_val", {}, [("uid-a", 180, 360, "C cooks.")]),
        ("clips_val", {}, [("uid-b", 600, 604, "#C C picks")]),
    ],
)
def test_long_videos_segments_and_clips(root, store, rows_of, split, options, expected):
    found = rows_of(egosummary.load(split, root=str(root), store=store, **options))
    assert [(row["video"], row["start"], row["end"], *row["texts"]) for row in found] == expected


def test_tables_of_other_options_are_others(root, store):
    told = [egosummary.load("videos_val", root=str(root), store=store, text=text) for text in egosummary.TEXTS]
    assert told[0].column("texts") != told[1].column("texts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_end": [1.0]}, r"hierarchy_full.json, summary '#Summary C cooked': the lists .* 'clip_ends': 1"),
        ({"clip_start": [1.0, "x"]}, "'clip_starts' must be a number, found 'x'"),
        ({"tag_noun": ["[1]", "[a]"]}, "clip_nouns: must be a list of whole numbers, found"),
        ({"clip_text": ["one", None]}, "'clip_text'"),
    ],
)
def test_a_wrong_hierarchy_is_named(root, store, change, message):
    content = {"#Summary C cooked": INSIDE | change}
    (root / "summary_clips_hierarchy_full.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        egosummary.load("train", root=str(root), store=store, narrations=True)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"video_summary": "text"}, "videos_val.pkl, item 1: there is no 'vid'"),
        ({"vid": "uid-a", "summary": "text"}, "item 1: there is no 'video_summary'"),
        ({"vid": "uid-z", "video_summary": "text"}, "item 1: video 'uid-z' is not in the chunk store"),
        ({"vid": "uid-a", "video_summary": "t", "start_sec": 401}, "item 1: the clip 401 to 400 s .* starts after"),
        ({"vid": "uid-a", "video_summary": "t", "end_sec": None}, "item 1: 'end_sec' must be a number, found None"),
    ],
)
def test_a_wrong_long_video_is_named(root, store, record, message):
    (root / "videos_val.pkl").write_bytes(pickle.dumps([{"vid": "uid-a", "video_summary": "text"}, record]))
    with pytest.raises(ValueError, match=message):
        egosummary.load("videos_val", root=str(root), store=store)


def test_wrong_clips_of_summaries_are_named_and_options_checked(root, store):
    path = root / "egosummary_full.csv"
    path.write_text(path.read_text().replace("300\t600.5", "1000\t1001"))
    with pytest.raises(ValueError, match="egosummary_full.csv, row 3: the clip 1000 to 1001 s .* starts after"):
        egosummary.load("train", root=str(root), store=store)
    path.write_text(path.read_text().replace("tag_noun", "tag_nouns"))
    with pytest.raises(ValueError, match="egosummary_full.csv has no column 'tag_noun'"):
        egosummary.load("train", root=str(root), store=store)
    with pytest.raises(ValueError, match="narrations=True is for train, split 'videos_val' has no such choice"):
        egosummary.load("videos_val", root=str(root), store=store, narrations=True)
    with pytest.raises(ValueError, match="text='segments' is for videos, split 'clips_val'"):
        egosummary.load("clips_val", root=str(root), store=store, text="segments")
    with pytest.raises(ValueError, match="unknown text of a long video 'all'"):
        egosummary.load("videos_val", root=str(root), store=store, text="all")
