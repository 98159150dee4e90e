"""Stores that know videos and their lengths and nothing else: readers of annotations look no deeper."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidlang.data.stores.writer import CutVideo, write_store

FPS = 10


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """make_store({"video0": 12.5, ...}) gives the path of a store with videos of these seconds."""

    def make(seconds: dict[str, float]) -> str:
        path = tmp_path_factory.mktemp("stores") / "store"
        videos = [CutVideo(name, FPS, 64, 48, [b"unread"], [round(FPS * length)]) for name, length in seconds.items()]
        write_store(path, videos, {"fps": FPS})
        return str(path)

    return make


@pytest.fixture
def write_json(tmp_path):
    """write_json("folder/name.json", value) writes below the test's folder and gives the path."""

    def write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def spoil():
    """spoil(path, edit) changes the value of a JSON file in place: `edit` gets the value."""

    def change(path: Path, edit: Callable[[Any], Any]) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        edit(value)
        path.write_text(json.dumps(value), encoding="utf-8")

    return change


@pytest.fixture(scope="session")
def rows_of():
    """rows_of(table) gives every value of the table, a dict for each row."""
    return lambda table: [table.row(i) for i in range(len(table))]
