"""A large JSON object comes entry by entry, whatever its text is cut into."""

import json

import pytest

from vidlang.datasets import _stream
from vidlang.datasets._stream import stream_object

CONTENT = {"a": {"start": [1.5, 20], "text": ['say "hi" {', "é ☃"]}, 'b"}{:,': [], "c": 12345, "": None, "d": "x" * 50}

DEEP = '{"a": ' + "[" * 100_000


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_every_entry_is_there(tmp_path, monkeypatch, block, form):
    monkeypatch.setattr(_stream, "BLOCK", block)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, **form) + "\n", encoding="utf-8")
    assert list(stream_object(path)) == list(CONTENT.items())
    path.write_text(" {  } ")
    assert list(stream_object(path)) == []


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a"',
        '{"a": 1',
        '{"a": [1, ',
        '{"a": 1,}',
        '{"a" 1}',
        '{"a": 1} x',
        "{1 2}",
        "{1: 2}",
        '{"a": ' + "[" * 100_000,
    ],
)
def test_what_is_no_object_is_named(tmp_path, monkeypatch, block, text):
    monkeypatch.setattr(_stream, "BLOCK", block)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json is not one JSON object: .*; is the download complete"):
        list(stream_object(tmp_path / "a.json"))


def test_a_value_without_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(_stream, "BLOCK", 10)
    monkeypatch.setattr(_stream, "LONGEST", 100)
    path = tmp_path / "a.json"
    path.write_text('{"a": "' + "x" * 10_000)
    read = []
    monkeypatch.setattr(_stream._Text, "_more", lambda self, more=_stream._Text._more: (read.append(1), more(self)))
    with pytest.raises(ValueError, match="a.json is not one JSON object"):
        list(stream_object(path))
    assert len(read) < 20
