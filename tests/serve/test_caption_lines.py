"""A file of captions, torn off at any byte, is gone on with and becomes what it would have been."""

import dataclasses
import json

import pytest

from vidlang.data.clips import ClipTable
from vidlang.data.prompts import Prompt
from vidlang.datasets._files import read_lines
from vidlang.serve.caption_lines import CaptionLines
from vidlang.serve.captions import Caption

# Two rows are alike in all but the question, two in all.
TABLE = ClipTable.from_columns(
    {
        "video": ["a", "a", "a", "b", "b"],
        "start": [0.0, 0.0, 1 / 3, 2.0, 2.0],
        "end": [1.0, 1.0, 1.7, 3.0, 3.0],
        "texts": [[]] * 5,
        "question": ["what?", "why?", "what?", "what?", "what?"],
    }
)
PROMPT = Prompt("{question} \u00e9")


def said_of(row, samples):
    video, start, end = (TABLE.cell(row, name) for name in ("video", "start", "end"))
    told = f'row {row} says "\u00fc}}"'
    return [Caption(video, start, end, f"{told} {i}", -1.5 * i, PROMPT.of(TABLE, row), row) for i in range(samples)]


def write_all(path, rows, samples):
    with CaptionLines(path, samples) as lines:
        for row in lines.lacking(TABLE, rows, PROMPT).tolist():
            lines.add(said_of(row, samples))
    return path.read_bytes()


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("rows", [range(5), range(1, 5, 2)])
def test_torn_off_anywhere_it_becomes_the_same_file(tmp_path, rows, samples):
    whole = write_all(tmp_path / "whole.jsonl", rows, samples)
    assert whole.count(b"\n") == len(rows) * samples
    path = tmp_path / "torn.jsonl"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert write_all(path, rows, samples) == whole, size
    assert write_all(path, rows, samples) == whole, "nothing is made twice"


def test_lines_are_json_that_readers_of_narrations_take(tmp_path):
    write_all(tmp_path / "train.jsonl", range(5), 1)
    found = [value for _, value in read_lines(tmp_path / "train.jsonl")]
    expected = [dataclasses.asdict(said_of(row, 1)[0]) for row in range(5)]
    assert found == [{key: value for key, value in line.items() if key != "row"} for line in expected]
    caption = dataclasses.replace(said_of(0, 1)[0], prompt="")
    with CaptionLines(tmp_path / "other.jsonl") as lines:
        lines.add([caption])
    assert "prompt" not in json.loads((tmp_path / "other.jsonl").read_text())


def test_captions_after_another_prompt_are_others(tmp_path):
    write_all(tmp_path / "x.jsonl", range(5), 1)
    lines = CaptionLines(tmp_path / "x.jsonl")
    assert lines.lacking(TABLE, range(5), PROMPT).tolist() == []
    assert lines.lacking(TABLE, range(5), Prompt("")).tolist() == [0, 1, 2, 3, 4]
    assert lines.lacking(TABLE, [3, 4, 3], PROMPT).tolist() == [3], "two of three that are alike are there"


def test_a_file_is_not_touched_before_there_is_something_to_write(tmp_path):
    with CaptionLines(tmp_path / "new" / "x.jsonl") as lines:
        assert lines.lacking(TABLE, range(5), PROMPT).tolist() == [0, 1, 2, 3, 4]
    assert not (tmp_path / "new").exists()


def test_other_files_are_left_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    for content, samples, reason in (
        (b'{"caption": "x"}\n', 1, "line 1 is no caption .KeyError: 'score'"),
        (b"what is this\n", 1, "line 1 is no caption .JSONDecodeError"),
        (b"[1]\n", 1, "line 1 is no caption .TypeError"),
        (b"\xff\xfe\n", 1, "line 1 is no caption .UnicodeDecodeError"),
        (write_all(tmp_path / "one.jsonl", range(5), 1)[:-1] + b"\n", 3, "line 3: the 3 lines that end here are not"),
        (write_all(tmp_path / "two.jsonl", range(2), 1), 3, "ends with less than 3 lines of one clip"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            CaptionLines(path, samples)
        assert path.read_bytes() == content
