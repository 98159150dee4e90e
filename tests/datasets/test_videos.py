"""Tables of one's own: csv, tsv and JSON lines give the same clips, and a slip is named with its row."""

import csv
import json
import logging

import pytest

from vidlang.datasets import videos

CLIPS = [
    {"video": "kitchen/monday.mp4", "start": 0, "end": 8.5, "text": 'opens, then "closes" it', "label": 3},
    {"video": "garden.b", "text": " Ça dort\nau soleil ", "label": -1},
    {"video": "kitchen/monday.mp4", "start": 2.25, "text": "closes it", "label": 0},
]
EXPECTED = [
    {"video": "kitchen/monday", "start": 0.0, "end": 8.5, "texts": ['opens, then "closes" it'], "label": 3},
    {"video": "garden.b", "start": 0.0, "end": 5.0, "texts": [" Ça dort\nau soleil "], "label": -1},
    {"video": "kitchen/monday", "start": 2.25, "end": 20.0, "texts": ["closes it"], "label": 0},
]


@pytest.fixture
def store(make_store):
    return make_store({"kitchen/monday": 20.0, "garden.b": 5.0})


@pytest.fixture
def write(tmp_path):
    def as_file(suffix, clips, **more):
        path = tmp_path / f"train{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(f"{json.dumps(clip, ensure_ascii=False)}\n\n" for clip in clips), encoding="utf-8")
            return path
        columns = list(dict.fromkeys(name for clip in clips for name in clip))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(clips)
        return path

    return as_file


@pytest.fixture
def load(tmp_path, store, rows_of):
    return lambda **options: rows_of(videos.load("train", root=str(tmp_path), **{"store": store, **options}))


SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])


@SUFFIXES
def test_every_value_is_read(write, load, suffix):
    write(suffix, CLIPS)
    rows = load()
    assert rows == EXPECTED
    assert [type(row["label"]) for row in rows] == [int] * 3


@SUFFIXES
def test_a_list_of_videos_is_enough(write, load, suffix):
    write(suffix, [{"video": "garden.b"}])
    assert load() == [{"video": "garden.b", "start": 0.0, "end": 5.0, "texts": []}]


@SUFFIXES
def test_columns_have_their_types(write, load, suffix):
    clip = {"video": "garden.b", "question": "7", "group": 2**40, "answer": 1, "span_start": 0.5, "span_end": 2}
    write(suffix, [clip])
    row = load()[0]
    assert {name: row[name] for name in clip} == clip
    assert [type(row[name]) for name in clip] == [str, str, int, int, float, float]


@SUFFIXES
def test_unknown_names_are_refused_unless_ignored(write, load, suffix):
    write(suffix, [{"video": "garden.b", "strat": 1, "url": "x"}])
    with pytest.raises(ValueError, match=rf"train{suffix}.*: 'strat' is no column of a table .*mean 'start'"):
        load()
    assert len(load(ignore=["strat", "url"])) == 1


@SUFFIXES
@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"start": "soon"}, "'start'.* must be a number, found 'soon'"),
        (
            {"start": 20, "end": 21},
            "the clip 20 to 21 s of video 'kitchen/monday' starts after the video's end",
        ),
        ({"start": 4, "end": 3}, "the clip 4 to 3 s of video 'kitchen/monday' is none"),
        ({"video": "kitchen/munday.mp4"}, r"video 'kitchen/munday' is not in .*\(did you mean 'kitchen/monday'\?\)"),
        ({"label": "x"}, "'label'.* must be a whole number, found 'x'"),
    ],
)
def test_a_wrong_value_is_named(write, load, suffix, clip, message):
    write(suffix, [CLIPS[0], CLIPS[0] | clip])
    place = "line 3" if suffix == ".jsonl" else "row 3"
    with pytest.raises(ValueError, match=f"train{suffix}, {place}.*{message}"):
        load()


@SUFFIXES
def test_a_table_needs_videos(write, load, suffix):
    write(suffix, [{"text": "x"}])
    with pytest.raises(ValueError, match=f"train{suffix}.* no .*'video'"):
        load()


@SUFFIXES
def test_clips_of_unknown_videos_can_be_left_out(write, load, suffix):
    write(suffix, [{"video": "gone.mp4"}, {"video": "garden.b"}])
    assert [row["video"] for row in load(bad_clips="drop")] == ["garden.b"]


def test_json_lines_may_hold_lists(write, load):
    clip = {"video": "garden.b", "texts": ["a", "b"], "verbs": [1, 2], "choices": ["x", "y"], "answer": 1}
    write(".jsonl", [clip])
    assert load() == [{**clip, "start": 0.0, "end": 5.0}]
    for wrong, message in (
        ({"verbs": [1, "2"]}, "line 1: 'verbs' must be a list of whole numbers, found '2' in it"),
        ({"choices": [1]}, "line 1: 'choices' must be a text or a list of texts, its item 0 is 1"),
        ({"text": "c"}, "line 1: give 'text' or 'texts', not both"),
    ):
        write(".jsonl", [clip | wrong])
        with pytest.raises(ValueError, match=message):
            load()


def test_all_lines_have_the_same_keys(write, load):
    write(".jsonl", [{"video": "garden.b", "label": 1}, {"video": "garden.b", "start": None}])
    with pytest.raises(ValueError, match="train.jsonl, line 3: its keys are video, start; all lines must"):
        load()
    write(".jsonl", ["garden.b"])
    with pytest.raises(ValueError, match="train.jsonl, line 1: expected an object, found 'garden.b'"):
        load()


def test_csv_has_no_lists(write, load):
    write(".csv", [{"video": "garden.b", "verbs": "1"}])
    with pytest.raises(ValueError, match="train.csv: column 'verbs' holds lists, .*; write JSON lines"):
        load()


def test_a_missing_file_tells_what_to_write(load):
    with pytest.raises(ValueError, match="there is no train.csv or train.tsv or train.jsonl in .*; write it"):
        load()


@SUFFIXES
def test_two_files_that_differ_in_their_suffix_only_are_told_apart(write, load, suffix, make_store):
    store = make_store({"dog.avi": 3.0, "dog.mp4": 4.0, "cat": 5.0})
    write(suffix, [{"video": name, "text": name} for name in ("dog.mp4", "cat.mp4", "dog.avi")])
    assert [row["end"] for row in load(store=store)] == [4.0, 5.0, 3.0]


HEADER = "video,start,end,text\n"


def test_a_quote_that_is_never_closed_is_named(tmp_path, load):
    path = tmp_path / "train.csv"
    for swallowed in ("garden.b,0,2,sleeps", "kitchen/monday.mp4,1,2,x", "gone.avi,,,x"):
        path.write_text(f'{HEADER}garden.b,0,1,wakes\ngarden.b,0,1,"the dog\n{swallowed}\ngarden.b,0,3,"barks"\n')
        with pytest.raises(ValueError, match=f"train.csv, row 3: a text holds the clip '{swallowed}'; is a quote not"):
            load()
    # Lines of a text that have as many commas name no video.
    path.write_text(f'{HEADER}garden.b,0,1,"the dog\nsleeps, wakes, barks, and sleeps"\n')
    assert load()[0]["texts"] == ["the dog\nsleeps, wakes, barks, and sleeps"]


@SUFFIXES
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_is_refused(write, load, suffix, text):
    write(suffix, [CLIPS[0], {**CLIPS[0], "text": text}])
    with pytest.raises(ValueError, match=f"train{suffix}, (row|line) 3.*'text': is empty; write what can be seen"):
        load()


def test_an_empty_text_in_a_list_is_refused(write, load):
    write(".jsonl", [{"video": "garden.b", "texts": ["a", ""]}])
    with pytest.raises(ValueError, match="train.jsonl, line 1: one of 'texts': is empty"):
        load()


def test_only_one_file_of_a_split_may_be_there(write, load):
    write(".csv", CLIPS[:1])
    write(".jsonl", CLIPS[:1])
    with pytest.raises(ValueError, match="has both train.csv and train.jsonl; keep the one"):
        load()


def test_blank_lines_are_counted_and_give_no_clips(tmp_path, load):
    path = tmp_path / "train.csv"
    path.write_text(f"{HEADER}\n\ngarden.b,0,1,a\n\n,,,\ngarden.b,1,2,b\n\n")
    assert [row["texts"] for row in load()] == [["a"], ["b"]]
    for wrong, message in (
        ("garden.b,x,1,b", "row 7, column 'start'"),
        ("gone,0,1,b", "row 7: video 'gone'"),
        ("garden.b,0,1,", "row 7, column 'text': is empty"),
        ("garden.b,0,1,b,c", "row 7 has 5 fields in place of 4"),
    ):
        path.write_text(f"{HEADER}\n\ngarden.b,0,1,a\n\n\n{wrong}\n")
        with pytest.raises(ValueError, match=f"train.csv.*{message}"):
            load()
    path.write_text("video\n\ngarden.b\n\n")
    assert len(load()) == 1


@SUFFIXES
def test_a_number_too_large_for_its_column_is_named(write, load, suffix):
    write(suffix, [CLIPS[0], {**CLIPS[0], "label": 99999999999}])
    with pytest.raises(ValueError, match=f"train{suffix}, (row|line) 3.*'label'.*found 99999999999"):
        load()


def test_numbers_without_bound_in_json_lines_are_named(write, load):
    for wrong in ({"end": 10**400}, {"label": 10**400}, {"verbs": [1, 2**40]}):
        name = next(iter(wrong))
        write(".jsonl", [{"video": "garden.b", **wrong}])
        with pytest.raises(ValueError, match=f"train.jsonl, line 1: '{name}' must"):
            load()


def test_other_names_of_the_text_get_a_hint(write, load):
    write(".csv", [{"video": "garden.b", "caption": "x"}])
    with pytest.raises(ValueError, match=r"'caption' is no column of a table \(a clip's sentence is its 'text'\)"):
        load()


def test_a_column_that_is_there_twice_is_refused(tmp_path, load):
    (tmp_path / "train.csv").write_text("video,start,start,text\ngarden.b,0,1,x\n")
    with pytest.raises(ValueError, match="train.csv has 2 columns 'start'; rename or remove all but one"):
        load()


def test_times_in_other_units_are_told(write, load, caplog):
    write(".csv", [{"video": "garden.b", "start": 0, "end": 5.9}, {"video": "garden.b", "start": 2, "end": 4000}] * 2)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(load()) == 4
    told = "2 clips of 4 end more than 1 s after their video; are all times in seconds? "
    assert told in caplog.text and "train.csv, row 3: a clip ends at 4000 s, its video 'garden.b' at 5 s" in caplog.text
    assert caplog.text.count("are all times") == 1
