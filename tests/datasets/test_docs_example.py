"""The reader that the page on data shows works as it stands there."""

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def mine(tmp_path):
    """The module `mine.py` of the page."""
    section = PAGE.read_text(encoding="utf-8").partition("## A reader of your own")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None and "mine.py" in section[: code.start()], "the page has no example of a reader"
    path = tmp_path / "mine.py"
    path.write_text(code[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_reads_clips_and_names_what_is_wrong(mine, tmp_path, make_store, write_json, rows_of):
    store = make_store({"dog": 3.0, "cat": 4.5})
    clips = [{"video": "cat", "caption": "a cat sleeps"}, {"video": "dog", "caption": "a dog barks"}]
    write_json("train.json", clips)
    assert rows_of(mine.load("train", root=str(tmp_path), store=store)) == [
        {"video": "cat", "start": 0.0, "end": 4.5, "texts": ["a cat sleeps"]},
        {"video": "dog", "start": 0.0, "end": 3.0, "texts": ["a dog barks"]},
    ]
    for wrong, message in (
        ({"video": "cow", "caption": "x"}, "train.json, entry 2: video 'cow' is not in the chunk store"),
        ({"video": "cat", "caption": 7}, "train.json, entry 2: 'caption' must be a text, found 7"),
    ):
        write_json("train.json", [*clips, wrong])
        with pytest.raises(ValueError, match=message):
            mine.load("train", root=str(tmp_path), store=store)
    write_json("train.json", [*clips, {"video": "cow", "caption": "x"}])
    assert len(mine.load("train", root=str(tmp_path), store=store, bad_clips="drop")) == 2
    with pytest.raises(ValueError, match="there is no val.json in .*; our own annotators wrote it"):
        mine.load("val", root=str(tmp_path), store=store)
