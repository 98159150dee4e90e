"""EgoClip and its multiplied narrations as published: all values, groups of one scene, and what is left out."""

import logging
import pickle
import re

import numpy as np
import pytest

from vidlang.datasets import egoclip

HEADER = (
    "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text "
    "tag_verb tag_noun"
).split()
# clip_idx, video_uid, pass, narration_time, clip_start, clip_end, clip_text, tag_verb, tag_noun
CLIPS = [
    (0, "uid-a", "narration_pass_1", 3.3445, 2.967651, 3.721266, "#C C picks a bag", [93], [192, 115, 12]),
    (1, "uid-a", "narration_pass_1", 59.99, 59.5, 60.5, '#C C says "hi", twice', [], []),
    (2, "uid-a", "narration_pass_2", 60.0, 59.5, 60.5, "#O A man X écrit", [1, 2], [3]),
    (3, "uid-b", "narration_pass_1", 0.1, -0.4, 0.6, "#unsure", [117], [581]),
    (4, "uid-b", "narration_pass_2", 59.0, 58.0, 63.5, "#C C walks", [4], [5]),
]


def line(clip):
    idx, uid, source, time, start, end, text, verbs, nouns = clip
    text = '"' + text.replace('"', '""') + '"' if '"' in text else text
    return "\t".join(map(str, (idx, uid, 128.0, source, idx, time, start, end, text, verbs, nouns)))


def write(root, clips=CLIPS, header=HEADER, extra=()):
    lines = ["\t".join(header), *map(line, clips)]
    for place, text in extra:
        lines.insert(place, text)
    (root / "egoclip.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def store(make_store):
    return make_store({"uid-b": 70.0, "uid-a": 128.0})


def test_every_value_is_there(tmp_path, store):
    write(tmp_path)
    table = egoclip.load("train", root=str(tmp_path), store=store)
    for row, (_, uid, source, _, start, end, text, verbs, nouns) in enumerate(CLIPS):
        found = table.row(row)
        del found["group"]
        assert found == {
            "video": uid,
            "start": max(start, 0.0),
            "end": end,
            "texts": [text],
            "verbs": verbs,
            "nouns": nouns,
            "kind": source,
        }
    assert len(table) == len(CLIPS)


@pytest.mark.parametrize("seconds", [60, 30.5, 1000])
def test_a_group_is_one_video_and_one_run_of_seconds(tmp_path, store, seconds):
    write(tmp_path)
    table = egoclip.load("train", root=str(tmp_path), store=store, group_seconds=seconds)
    scene = [(clip[1], clip[3] // seconds) for clip in CLIPS]
    group = table.column("group")
    assert group.dtype == np.int64
    for i in range(len(CLIPS)):
        for j in range(len(CLIPS)):
            assert (group[i] == group[j]) == (scene[i] == scene[j])
    with pytest.raises(ValueError, match="group_seconds must be more than 0"):
        egoclip.load("train", root=str(tmp_path), store=store, group_seconds=0)


def test_unreadable_rows_are_left_out_and_the_numbers_of_others_stay(tmp_path, store, caplog):
    unreadable = [
        (2, "too\tfew"),
        (4, line((9, "uid-a", "p", "soon", 1, 2, "text", [1], [1]))),
        (5, line((9, "uid-a", "p", 1, 1, 2, "text", "[1", [1]))),
        (6, line((9, "uid-a", "p", 1, 1, 2, "text\tmore", [1], [1]))),
    ]
    write(tmp_path, extra=unreadable)
    with caplog.at_level(logging.WARNING, logger="absl"):
        table = egoclip.load("train", root=str(tmp_path), store=store)
    assert table.column("texts") == [[clip[6]] for clip in CLIPS]
    assert "egoclip.csv: left out 4 rows of 9: row 3 has 2 fields in place of 11" in caplog.text
    write(tmp_path, [*CLIPS, (5, "uid-z", "p", 1, 1, 2, "text", [], [])], extra=unreadable)
    with pytest.raises(ValueError, match="egoclip.csv, row 11: video 'uid-z' is not in the chunk store"):
        egoclip.load("train", root=str(tmp_path), store=store)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((5, "uid-c", "p", 1, 1, 2, "t", [], []), "row 7: video 'uid-c' is not in the chunk store"),
        ((5, "uid-b", "p", 71, 70.5, 71, "t", [], []), "row 7: the clip 70.5 to 71 s of video 'uid-b' starts after"),
        ((5, "uid-b", "p", 1, -2, -1, "t", [], []), "row 7: the clip 0 to 0 s of video 'uid-b' is none"),
    ],
)
def test_a_bad_clip_is_named_or_dropped(tmp_path, store, clip, message):
    write(tmp_path, [*CLIPS, clip])
    with pytest.raises(ValueError, match="egoclip.csv, " + message):
        egoclip.load("train", root=str(tmp_path), store=store)
    assert len(egoclip.load("train", root=str(tmp_path), store=store, bad_clips="drop")) == len(CLIPS)


def test_a_wrong_column_and_a_wrong_name_are_named(tmp_path, store):
    write(tmp_path, header=["clip_tex" if name == "clip_text" else name for name in HEADER])
    with pytest.raises(ValueError, match=r"egoclip.csv has no column 'clip_text' \(did you mean 'clip_tex'\?\)"):
        egoclip.load("train", root=str(tmp_path), store=store)
    with pytest.raises(ValueError, match="video_name 'videos' gives all videos one name"):
        egoclip.load("train", root=str(tmp_path), store=store, video_name="videos")


def test_videos_may_have_other_names_in_the_store(tmp_path, make_store):
    store = make_store({"ego4d/uid-a": 128.0, "ego4d/uid-b": 70.0})
    write(tmp_path)
    table = egoclip.load("train", root=str(tmp_path), store=store, video_name="ego4d/{video}")
    assert table.column("video") == [f"ego4d/{clip[1]}" for clip in CLIPS]


HUMAN = [("uid-a", 1.0, 2.5, "#C C cuts"), ("uid-b", 59.0, 62.0, "#C C eats"), ("uid-a", 58, 61, "#C C runs")]
REPHRASED = [("uid-a", 1.0, 2.5, ["he cuts", "she cuts", "it cuts"]), ("uid-b", 59.0, 62.0, "one")]
NARRATED = [("uid-b", 3.0, 4.0, ["first", "second"], [0.5, 1.25]), ("uid-a", 3.0, 4.0, ["only"], [2.0])]


@pytest.fixture
def pickles(tmp_path):
    for split, rows in (("lavila_train", HUMAN), ("rephraser", REPHRASED), ("narrator", NARRATED)):
        (tmp_path / egoclip.FILES[split]).write_bytes(pickle.dumps(rows))
    return tmp_path


def rows(table):
    return [{key: value for key, value in table.row(i).items() if key != "group"} for i in range(len(table))]


def row(video, start, end, texts, **more):
    return {"video": video, "start": start, "end": end, "texts": texts, **more}


def test_pickles_keep_every_value(pickles, store):
    table = egoclip.load("lavila_train", root=str(pickles), store=store)
    assert rows(table) == [row(uid, start, end, [text]) for uid, start, end, text in HUMAN]
    group = table.column("group")
    assert group[0] == group[2] != group[1]
    rephrased = [
        row("uid-a", 1, 2.5, ["he cuts", "she cuts", "it cuts"], nll=None),
        row("uid-b", 59, 62, ["one"], nll=None),
    ]
    assert rows(egoclip.load("rephraser", root=str(pickles), store=store)) == rephrased
    narrated = [row("uid-b", 3, 4, ["first", "second"], nll=[0.5, 1.25]), row("uid-a", 3, 4, ["only"], nll=[2.0])]
    assert rows(egoclip.load("narrator", root=str(pickles), store=store)) == narrated
    both = egoclip.load("lavila", root=str(pickles), store=store)
    assert rows(both) == rephrased + narrated and len(pickle.dumps(both)) < 1000


def test_groups_are_the_same_in_all_tables_of_a_store(pickles, store):
    write(pickles)
    human = egoclip.load("lavila_train", root=str(pickles), store=store).column("group")
    clips = egoclip.load("train", root=str(pickles), store=store).column("group")
    # The middles are at 1.75, 60.5 and 59.5 seconds.
    assert human[0] == human[2] == clips[0] and human[1] not in clips


def test_a_pickle_is_read_in_pieces(pickles, store, monkeypatch):
    whole = rows(egoclip.load("lavila_train", root=str(pickles), store=store))
    monkeypatch.setattr(egoclip, "ROWS", 2)
    (pickles / "mine.pkl").write_bytes(pickle.dumps(HUMAN))
    assert rows(egoclip.load("lavila_train", root=str(pickles), store=store, file="mine.pkl")) == whole
    (pickles / "mine.pkl").write_bytes(pickle.dumps([*HUMAN, ("uid-x", 0, 1, "t")]))
    with pytest.raises(ValueError, match="mine.pkl, item 3: video 'uid-x' is not in the chunk store"):
        egoclip.load("lavila_train", root=str(pickles), store=store, file="mine.pkl")
    (pickles / "mine.pkl").write_bytes(pickle.dumps([*HUMAN, "what"]))
    with pytest.raises(ValueError, match="mine.pkl, item 3: must be"):
        egoclip.load("lavila_train", root=str(pickles), store=store, file="mine.pkl")


@pytest.mark.parametrize(
    "wrong",
    [
        ("uid-a", 1.0, 2.0),
        ("uid-a", 1.0, "soon", "text"),
        ("uid-a", float("nan"), 2.0, "text"),
        (7, 1.0, 2.0, "text"),
        ("uid-a", 1.0, 2.0, ["text", None]),
        ("uid-a", 1.0, 2.0, ["a", "b"], [0.5]),
        ("uid-a", 1.0, 2.0, ["a"], [0.5], "more"),
        None,
    ],
)
def test_a_wrong_item_is_named(pickles, store, wrong):
    (pickles / egoclip.FILES["narrator"]).write_bytes(pickle.dumps([*NARRATED, wrong]))
    message = (
        rf"return_10.pkl, item 2: must be \(video, start, end, caption or captions\), found {re.escape(str(wrong))[:9]}"
    )
    with pytest.raises(ValueError, match=message):
        egoclip.load("narrator", root=str(pickles), store=store)


def test_what_is_no_list_is_named(pickles, store):
    path = pickles / egoclip.FILES["lavila_val"]
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="ego4d_val.pkl must hold a list of"):
        egoclip.load("lavila_val", root=str(pickles), store=store)
    path.write_bytes(pickle.dumps([]))
    with pytest.raises(ValueError, match="ego4d_val.pkl has no rows"):
        egoclip.load("lavila_val", root=str(pickles), store=store)
    with pytest.raises(ValueError, match="split 'lavila' reads two files"):
        egoclip.load("lavila", root=str(pickles), store=store, file="mine.pkl")
