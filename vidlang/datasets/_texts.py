"""Names of videos, texts and answers: how published files hold them, and how a table wants them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.datasets._files import field, read_json

# Of files that people call videos or images; a name may have other points in it.
_VIDEOS = ".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv"
SUFFIXES = frozenset(f"{_VIDEOS} .bmp .gif .jpeg .jpg .png .webp".split())


def naming(template: str, *parts: str) -> Callable[..., str]:
    """How the store calls a published video: `naming("{video}")("a.mp4")` is "a".

    The template may hold {video}, which is the published name less the suffix of a video file, {file}, which is the
    published name as it is, and the `parts` of its reader, such as a folder.
    """
    pieces = _pieces(template, ("video", "file", *parts))

    def name(video: str, **more: str) -> str:
        values = {"video": bare(video), "file": video, **more}
        return "".join(literal + (values[part] if part else "") for literal, part in pieces)

    return name


def naming_column(template: str, video: pa.ChunkedArray, **parts: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same for a whole column of names; no Python object per row."""
    suffix = rf"(?i)({'|'.join(re.escape(suffix) for suffix in sorted(SUFFIXES))})$"
    columns = {"video": pc.replace_substring_regex(video, suffix, ""), "file": video, **parts}
    pieces = _pieces(template, tuple(columns))
    texts = [piece for literal, part in pieces for piece in (literal, columns[part] if part else "")]
    return pc.binary_join_element_wise(*texts, "")


def _pieces(template: str, known: Sequence[str]) -> list[tuple[str, str]]:
    """(text, name of the part that follows it, or nothing) of a template."""
    places = ", ".join(f"{{{name}}}" for name in known)
    try:
        pieces = [(literal, part) for literal, part, *_ in string.Formatter().parse(template)]
        rebuilt = "".join(literal + (f"{{{part}}}" if part is not None else "") for literal, part in pieces)
    except ValueError as error:
        raise ValueError(f"video_name {template!r} cannot be filled in ({error}); it may hold {places}") from error
    wrong = [part for _, part in pieces if part is not None and part not in known]
    if wrong or rebuilt != template:  # what differs is a format, such as {video:>3}, or a brace
        raise ValueError(f"video_name {template!r} cannot be filled in; it may hold {places}")
    if all(part is None for _, part in pieces):
        raise ValueError(f"video_name {template!r} gives all videos one name; it may hold {places}")
    return [(literal, part or "") for literal, part in pieces]


def bare(name: str) -> str:
    """A file's name less the suffix of a video or image; names in a store have none."""
    suffix = name[name.rfind(".") :] if "." in name else ""
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name


def texts(record: Any, key: str, where: str) -> list[str]:
    """A value that is published as a text or as a list of texts."""
    value = record[key] if isinstance(record, Mapping) and key in record else field(record, key, list, where)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise ValueError(f"{where}: {key!r} must be a text or a list of texts, found {value!r}")
    for number, text in enumerate(values):
        if not isinstance(text, str):
            raise ValueError(f"{where}: {key!r} must be a text or a list of texts, its item {number} is {text!r}")
    return values


def span(value: Any, where: str, kind: type = float) -> tuple[Any, Any]:
    """A published [start, end]; `where` names the record and the key."""
    numbers = (int, float) if kind is float else int
    if not (isinstance(value, list) and len(value) == 2 and all(type(x) is not bool for x in value)):
        raise ValueError(f"{where} must be [start, end], found {value!r}")
    if not all(isinstance(number, numbers) for number in value):
        raise ValueError(f"{where} must be two {'numbers' if kind is float else 'whole numbers'}, found {value!r}")
    return value[0], value[1]


def items(value: Any, kind: type, path: Path, what: str = "item") -> Iterator[tuple[str, str, Any, Any]]:
    """(place, where, key, record) of each record of a list (the key is its number from 0) or of an object.

    The place is what a row of a table is called in errors, `where` names the file too.
    """
    content = field({"content": value}, "content", kind, str(path))
    for key, record in content.items() if kind is dict else enumerate(content):
        place = f"{what} {key!r}"
        yield place, f"{path}, {place}", key, record


def index(record: Any, key: str, count: int, where: str) -> int:
    """A published class id, or place of a choice: a whole number from 0 to count - 1."""
    value = field(record, key, int, where)
    if not 0 <= value < count:
        raise ValueError(f"{where}: {key!r} must be 0 to {count - 1}, found {value}")
    return value


def first_end(seconds: float) -> float | None:
    """Where a clip ends of which only the first seconds are wanted; 0 wants everything."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"first_seconds must be 0 (all of a clip) or more, found {seconds}")
    return seconds or None


def paragraph(sentences: Sequence[str], joiner: str) -> str:
    """All sentences as one text; spaces around a sentence are left out, and so are empty sentences."""
    return joiner.join(stripped for sentence in sentences if (stripped := sentence.strip()))


def read_answers(path: Path) -> list[str]:
    """A published list of answers, by class id."""
    return texts({"answers": read_json(path)}, "answers", str(path))


def class_ids(names: Sequence[str]) -> Callable[[str], int]:
    """The place of a name in the list, or -1 where the list lacks it."""
    ids = {name: number for number, name in reversed(list(enumerate(names)))}
    return lambda name: ids.get(name, -1)


def one_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts as a column of lists with one text each; no Python object per row."""
    chunks = [pa.ListArray.from_arrays(np.arange(len(chunk) + 1, dtype=np.int32), chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.list_(pa.string()))
