"""What every reader of published annotations has in common, so that a user who knows one knows all."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import vidlang.datasets
from vidlang.core import config

# A split of each, with options that it needs. A new reader is entered here.
READERS = {
    "activitynet_captions": "train",
    "activitynet_qa": "val",
    "agqa": "test",
    "charades": "train",
    "charades_ego": "test",
    "didemo": "val",
    "diving48": "test",
    "ego4d_nlq": "val",
    "egoclip": "narrator",
    "egomcq": "egomcq",
    "egoschema": "subset",
    "egosummary": "videos_val",
    "epic_kitchens": "mir_test",
    "howto100m": "caption",
    "image_text": "train",
    "kinetics": "val",
    "msrvtt": "test1k",
    "msrvtt_qa": "val",
    "pairs_json": "train",
    "perception_test": "valid",
    "ssv2": "val",
    "vatex": "val",
    "videocc": "train",
    "videos": "train",
    "webvid": "val",
    "youcook2": "val",
}
# Any name is a split of these: it is a file's name.
FREE = ("image_text", "pairs_json", "videos")
# Makes its own videos; tests/datasets/test_synthetic*.py.
OTHERS = ("synthetic", "narrated")
FOLDER = Path(vidlang.datasets.__file__).parent
each = pytest.mark.parametrize("name", READERS)
each_with_splits = pytest.mark.parametrize("name", [name for name in READERS if name not in FREE])


def reader(name):
    return config.load_module("datasets", name)


def failure(name, split, root, store, **options):
    with pytest.raises(ValueError) as error:
        reader(name).load(split, root=str(root), store=store, **options)
    return str(error.value)


def splits(name, root, store):
    """The splits of a reader, as it tells who names an unknown one."""
    message = failure(name, "no-such-split", root, store)
    found = re.fullmatch(r"unknown split of [^']+ 'no-such-split'(?: \(did you mean .*\))?; there are: (.+)", message)
    assert found, message
    return found.group(1).split(", ")


@pytest.fixture(scope="module")
def store(make_store):
    return make_store({"video": 10.0})


def test_all_readers_are_here():
    # Other tests of this process may have added readers of their own, in folders of their own.
    here = {path.stem for path in FOLDER.iterdir()}
    assert here.intersection(config.extension_names("datasets")) == {*READERS, *OTHERS}


@each
def test_load_takes_a_split_and_the_same_options(name):
    parameters = inspect.signature(reader(name).load).parameters
    assert next(iter(parameters)) == "split"
    for option in ("root", "store"):
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[option].default is inspect.Parameter.empty
    assert parameters["bad_clips"].default == "error" and "{video}" in parameters["video_name"].default
    assert "limit" not in parameters, "a part of a table is what ClipTable.select gives"


@each
def test_the_docstring_tells_splits_sizes_and_origin(name, tmp_path, store):
    text = reader(name).__doc__
    header, line, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "split" in header or name in FREE, "the docstring has a table of the splits"
    assert set(line) <= set("|-") and rows
    if name not in FREE:
        for split in splits(name, tmp_path, store):
            assert re.search(rf"\b{split}\b", text), f"the docstring does not tell of split {split}"


@each_with_splits
def test_an_unknown_split_lists_those_there_are(name, tmp_path, store):
    assert READERS[name] in splits(name, tmp_path, store)


@each
def test_a_missing_file_is_named_with_where_to_get_it(name, tmp_path, store):
    for split in [READERS[name]] if name in FREE else splits(name, tmp_path, store):
        options = {"within": "clips"} if name == "ego4d_nlq" else {}
        message = failure(name, split, tmp_path, store, **options)
        found = re.search(rf"there is no (.+) in {re.escape(repr(str(tmp_path)))}; (.+)", message)
        assert found, message
        assert re.search(r"\w+\.\w+|folder \w+", found.group(1)), f"no file is named: {message}"
        assert len(found.group(2).split()) > 3, f"nothing tells where the file comes from: {message}"


@each
def test_an_empty_file_is_named(name, tmp_path, store):
    """The file that is missed is made, empty: the error names it, and is none of Python's own."""
    for _ in range(4):
        message = failure(name, READERS[name], tmp_path, store)
        found = re.search(r"there is no (folder )?([\w.\-]+)", message)
        if not found or str(tmp_path) not in message or (tmp_path / found.group(2)).exists():
            break
        path = tmp_path / found.group(2)
        path.mkdir() if found.group(1) else path.write_text("")
    assert str(tmp_path) in message and "there is no" not in message


@each
def test_a_reader_leaves_checks_and_keeping_to_what_all_share(name):
    """Ends that are missing, unknown videos and the kept table are one piece of code."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "cached" in names and "ClipTable" in names
