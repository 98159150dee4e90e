"""Names and texts of published files: suffixes go, other points stay, and what is no text is named."""

from pathlib import Path

import pyarrow as pa
import pytest

from vidlang.datasets._texts import (
    bare,
    class_ids,
    first_end,
    index,
    items,
    naming,
    naming_column,
    one_text,
    paragraph,
    read_answers,
    span,
    texts,
)


@pytest.mark.parametrize(
    ("published", "stored"),
    [
        ("video0.mp4", "video0"),
        ("a/b.c.WEBM", "a/b.c"),
        ("10015@N08_36.5", "10015@N08_36.5"),
        ("-x.y", "-x.y"),
        ("clip.mov.mp4", "clip.mov"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_only_suffixes_of_videos_are_left_out(published, stored):
    assert bare(published) == stored


def test_a_template_names_videos():
    assert naming("{video}")("a.mp4") == "a"
    assert naming("v_{video}")("a") == "v_a"
    assert naming("all/{file}")("a.mov") == "all/a.mov"
    assert naming("{folder}/{video}", "folder")("a.mp4", folder="0_9") == "0_9/a"


@pytest.mark.parametrize("template", ["{vide}", "{}", "{video", "{video.x}", "{video:>3}", "{video!r}", "{{{video}"])
def test_a_wrong_template_tells_what_it_may_hold(template):
    with pytest.raises(ValueError, match=r"cannot be filled in.*; it may hold \{video\}, \{file\}, \{folder\}"):
        naming(template, "folder")


def test_a_template_without_a_place_is_refused():
    with pytest.raises(ValueError, match="'video' gives all videos one name"):
        naming("video")


@pytest.mark.parametrize("template", ["{video}", "x/{file}", "{folder}/a_{video}.b"])
def test_a_column_is_named_as_its_rows_are(template):
    videos, folders = ["a.mp4", "b.c", "d.MOV.webm", "é.4", ""], ["0", "1", "", "x y", "4"]
    name = naming(template, "folder")
    column = naming_column(template, pa.chunked_array([videos[:2], videos[2:]]), folder=pa.chunked_array([folders]))
    expected = [name(video, folder=folder) for video, folder in zip(videos, folders, strict=True)]
    assert column.to_pylist() == expected
    with pytest.raises(ValueError, match="gives all videos one name"):
        naming_column("all", pa.chunked_array([videos]))


def test_texts_are_one_or_several():
    assert texts({"caption": " a, “b” "}, "caption", "here") == [" a, “b” "]
    assert texts({"caption": ["a", ""]}, "caption", "here") == ["a", ""]
    with pytest.raises(ValueError, match="here: 'caption' must be a text or a list of texts, its item 1 is 3"):
        texts({"caption": ["a", 3]}, "caption", "here")
    with pytest.raises(ValueError, match="here: 'caption' must be a text or a list of texts, found 3"):
        texts({"caption": 3}, "caption", "here")
    with pytest.raises(ValueError, match=r"here: there is no 'caption' \(did you mean 'captions'\?\)"):
        texts({"captions": "a"}, "caption", "here")


def test_an_index_is_below_its_count():
    assert [index({"answer": value}, "answer", 2, "here") for value in (0, 1)] == [0, 1]
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=f"here: 'answer' must be 0 to 1, found {wrong}"):
            index({"answer": wrong}, "answer", 2, "here")


def test_records_have_places():
    path = Path("a.json")
    assert list(items(["x"], list, path, "clip")) == [("clip 0", "a.json, clip 0", 0, "x")]
    assert list(items({"v": "x"}, dict, path)) == [("item 'v'", "a.json, item 'v'", "v", "x")]
    with pytest.raises(ValueError, match="a.json: 'content' must be a list, found {}"):
        next(items({}, list, path))


def test_a_paragraph_has_one_joiner_between_sentences():
    assert paragraph([" A man. ", "", "He runs.\n"], " ") == "A man. He runs."
    assert paragraph(["a", "b"], "; ") == "a; b"


def test_answers_have_ids(write_json):
    answers = read_answers(write_json("answers.json", ["yes", "two", "yes"]))
    number = class_ids(answers)
    assert answers == ["yes", "two", "yes"]
    assert [number(answer) for answer in ("two", "yes", "no")] == [1, 0, -1]
    with pytest.raises(ValueError, match="'answers' must be a text or a list of texts, found {'yes': 0}"):
        read_answers(write_json("answers.json", {"yes": 0}))


def test_one_text_keeps_every_text_of_every_chunk():
    column = pa.chunked_array([pa.array(["x", "a", "b"])[1:], pa.array([], pa.string()), pa.array(["é"])])
    assert one_text(column).to_pylist() == [["a"], ["b"], ["é"]]


def test_a_span_is_two_numbers():
    assert span([1, 2.5], "here: 'times'") == (1, 2.5)
    assert span([0, 3], "here: 'times'", int) == (0, 3)
    for wrong in ([1], [1, 2, 3], "12", {"0": 1}, [True, 2]):
        with pytest.raises(ValueError, match=r"here: 'times' must be \[start, end\], found"):
            span(wrong, "here: 'times'")
    with pytest.raises(ValueError, match="here: 'times' must be two numbers, found"):
        span([1, "2"], "here: 'times'")
    with pytest.raises(ValueError, match="here: 'times' must be two whole numbers, found"):
        span([1, 2.5], "here: 'times'", int)


def test_first_seconds_are_a_length_or_everything():
    assert (first_end(0), first_end(2.5)) == (None, 2.5)
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"first_seconds must be 0 .all of a clip. or more, found {wrong}"):
            first_end(wrong)
