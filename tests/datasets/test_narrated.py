"""Narrations that a model made: which of them are kept, as how many rows, with which texts."""

import json

import pyarrow as pa
import pytest

from vidlang.data.bulk_store import CAPTIONS, BulkStore
from vidlang.datasets import narrated


@pytest.fixture
def store(make_store):
    return make_store({"a": 10.0, "b.mkv": 10.0})


def line(video, start, caption, score, **more):
    return {"video": video, "start": start, "end": start + 1.5, "caption": caption, "score": score, **more}


def write(path, lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))


SAID = [
    line("a", 0.0, "a dog runs", -3.0),
    line("a", 0.0, "a dog", -9.0),
    line("a", 0.0, "a dog runs", -3.0),
    line("b.mkv", 2.0, "a cat sits there", -1.0),
    line("a", 4.0, "a dog runs", -6.0),
    line("a", 6.0, " ", 0.0),
]


def write_folder(path, lines, shard_rows=2, leave_out=()):
    """The same as a folder of Parquet files: a row of the table for each line, and one that could not be read."""
    rows = [*lines, line("a", 9.0, None, None)]
    header = {"rows": len(rows), "shard_rows": shard_rows, "samples": 1}
    folder = BulkStore(path, CAPTIONS, header, {"captions": {}})
    folder.begin()
    for shard in range(folder.shards):
        if shard in leave_out:
            continue
        some = [{"row": row, "place": 0, "prompt": "", **rows[row]} for row in folder.rows_of(shard)]
        columns = {name: pa.array([each[name] for each in some]) for name in some[0]}
        columns |= {"caption": columns["caption"].cast(pa.string()), "score": columns["score"].cast(pa.float32())}
        folder.write("captions", shard, columns, sum(each["caption"] is None for each in some))


@pytest.mark.parametrize("options", [{}, {"min_score": -2.0}, {"min_words": 3, "keep": 0.7}, {"most_alike": 1}])
@pytest.mark.parametrize("prompt", ["", "which?"])
def test_a_folder_of_parquet_files_is_the_same_table(store, tmp_path, rows_of, options, prompt):
    said = [{**each, "prompt": prompt if place % 2 else ""} for place, each in enumerate(SAID)]
    write(tmp_path / "lines.jsonl", said)
    write_folder(tmp_path / "files", said)
    lines, files = (narrated.load(name, root=str(tmp_path), store=store, **options) for name in ("lines", "files"))
    assert rows_of(lines) == rows_of(files) and lines.columns == files.columns


def test_a_folder_that_is_not_complete_or_not_alone_is_refused(store, tmp_path):
    write_folder(tmp_path / "train", SAID, leave_out=(1,))
    with pytest.raises(ValueError, match="train is not complete: captions: 3 of 4 files, 5 lines, 1 .* are 00001"):
        narrated.load("train", root=str(tmp_path), store=store)
    write_folder(tmp_path / "train", [*SAID[:3], {**SAID[3], "video": "c"}, *SAID[4:]])
    with pytest.raises(ValueError, match="00001.parquet, line 2.*'c'"):
        narrated.load("train", root=str(tmp_path), store=store)
    write(tmp_path / "train.jsonl", SAID)
    with pytest.raises(ValueError, match="has train.jsonl and the folder train; which of them is meant"):
        narrated.load("train", root=str(tmp_path), store=store)


def test_lines_of_one_clip_are_one_row_of_different_texts(store, tmp_path, rows_of):
    write(tmp_path / "train.jsonl", SAID)
    found = rows_of(narrated.load("train", root=str(tmp_path), store=store))
    assert found == [
        {"video": "a", "start": 0.0, "end": 1.5, "texts": ["a dog runs", "a dog"]},
        {"video": "b.mkv", "start": 2.0, "end": 3.5, "texts": ["a cat sits there"]},
        {"video": "a", "start": 4.0, "end": 5.5, "texts": ["a dog runs"]},
    ]
    for part in range(2):
        write(tmp_path / f"parts.{part}.jsonl", SAID[part::2])
    parts = rows_of(narrated.load("parts", root=str(tmp_path), store=store))
    assert sorted(map(str, parts)) == sorted(map(str, found))


@pytest.mark.parametrize("at_a_time", [1, 2, 1 << 17])
def test_clips_and_what_is_said_of_them_keep_their_order(store, tmp_path, rows_of, monkeypatch, at_a_time):
    said = [
        ("a", 6.0, "x"),
        ("b.mkv", 0.0, "y"),
        ("a", 2.0, "z"),
        ("b.mkv", 0.0, "x"),
        ("a", 6.0, "w"),
        ("a", 6.0, "x"),
    ]
    write(tmp_path / "train.jsonl", [line(*each, -1.0) for each in said])
    monkeypatch.setattr(narrated, "AT_A_TIME", at_a_time)
    found = rows_of(narrated.load("train", root=str(tmp_path), store=store))
    assert [(row["start"], row["texts"]) for row in found] == [(6.0, ["x", "w"]), (0.0, ["y", "x"]), (2.0, ["z"])]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"min_score": -1.0}, [0, 2, 3]),  # log p for each word: -1, -4.5, -1, -0.25, -2
        ({"min_words": 3}, [0, 2, 3, 4]),
        ({"most_alike": 1}, [1, 3]),
        ({"keep": 0.6}, [0, 2, 3]),
        ({"keep": 0.01}, [3]),
        ({"most_alike": 1, "keep": 0.5}, [3]),
    ],
)
def test_what_is_unsure_short_or_said_of_too_many_clips_is_left_out(store, tmp_path, rows_of, options, kept):
    write(tmp_path / "train.jsonl", SAID)
    expected = {}
    for place in kept:
        each = SAID[place]
        texts = expected.setdefault((each["video"], each["start"]), [])
        texts += [each["caption"]] if each["caption"] not in texts else []
    found = rows_of(narrated.load("train", root=str(tmp_path), store=store, **options))
    assert {(row["video"], row["start"]): row["texts"] for row in found} == expected


def test_what_several_samples_of_one_clip_say_is_not_said_of_many(store, tmp_path, rows_of):
    lines = [line("a", 0.0, "a dog runs", -1.0)] * 3 + [
        line("b.mkv", 0.0, "a cat", -1.0),
        line("a", 3.0, "a cat", -1.0),
    ]
    write(tmp_path / "train.jsonl", lines)
    found = rows_of(narrated.load("train", root=str(tmp_path), store=store, most_alike=1))
    assert [row["texts"] for row in found] == [["a dog runs"]]


def test_answers_to_different_questions_are_different_rows(store, tmp_path, rows_of):
    lines = [
        line("a", 0.0, "red", -1.0, prompt="which colour?"),
        line("a", 0.0, "round", -1.0, prompt="which shape?"),
        line("a", 0.0, "blue", -2.0, prompt="which colour?"),
        line("a", 0.0, "a ball", -2.0),
    ]
    write(tmp_path / "train.jsonl", lines)
    found = rows_of(narrated.load("train", root=str(tmp_path), store=store))
    assert [(row["prompt"], row["texts"]) for row in found] == [
        ("which colour?", ["red", "blue"]),
        ("which shape?", ["round"]),
        ("", ["a ball"]),
    ]


def test_mistakes_name_the_file_and_the_line(store, tmp_path):
    def load(split="train", **options):
        return narrated.load(split, root=str(tmp_path), store=store, **options)

    with pytest.raises(ValueError, match="there is no train.jsonl and no train.*.jsonl in .* launch.caption --data"):
        load()
    write(tmp_path / "train.0.jsonl", SAID)
    write(tmp_path / "train.1.jsonl", [SAID[0], line("c", 0.0, "x", -1.0)])
    with pytest.raises(ValueError, match="train.1.jsonl, line 2.*'c'"):
        load()
    write(tmp_path / "train.1.jsonl", [{"video": "a", "start": 0, "end": 1, "text": "x", "score": 0}])
    with pytest.raises(ValueError, match="train.1.jsonl, line 1: there is no 'caption'"):
        load()
    write(tmp_path / "other.jsonl", SAID)
    with pytest.raises(ValueError, match="none of 6 captions is left with min_score=None, min_words=9"):
        load("other", min_words=9)
    for wrong in ({"keep": 0}, {"keep": 1.5}, {"min_words": -1}, {"most_alike": -1}):
        with pytest.raises(ValueError, match="keep=.* is a share above 0 and up to 1"):
            load("other", **wrong)
