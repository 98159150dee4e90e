"""Your own videos: a table that you write, as csv, tsv or JSON lines, a clip a row.

A split is one file in `root`: train.csv (or .tsv, .jsonl) for split="train". Its columns or keys:

| name | meaning |
|---|---|
| video | path of the video in the folder that was precut, with or without its suffix (needed) |
| text | what can be seen or is said, never empty; in JSON lines `texts` may be a list of several in its place |
| start, end | seconds of the clip; without them, or where they are empty, the clip is the whole video |
| others | any other column of `ClipTable`, such as label, group, question, answer; lists in JSON lines only |

    video,start,end,text
    kitchen/monday.mp4,0,8.5,"a person opens the fridge, then closes it"
    garden.mp4,,,the dog sleeps

A name that no column has is an error, since it may be a slip; `ignore` tells which names to pass over. A csv file is
read in columns, so that millions of rows are no matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.core.config import did_you_mean
from vidlang.data.chunks import open_store
from vidlang.data.clips import KNOWN, ClipTable
from vidlang.datasets._csv import as_type, header, numbered_csv, parse_numbers
from vidlang.datasets._files import field, read_lines, short
from vidlang.datasets._tables import Rows, cached, checked, published
from vidlang.datasets._texts import bare, naming, naming_column, one_text, texts

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ORIGIN = "write it with the columns video, start, end and text"
# What others call the text of a clip.
_TEXTS = frozenset(("caption", "captions", "description", "sentence", "sentences", "narration"))
_TIMES = {"start": "0", "end": "nan"}


def load(
    split: str,
    *,
    root: str,
    store: str,
    ignore: Sequence[str] = (),
    video_name: str = "{video}",
    bad_clips: str = "error",
) -> ClipTable:
    """The clips of the file with this name; errors tell its row or line."""
    names = [f"{split}{suffix}" for suffix in (*DELIMITERS, ".jsonl")]
    path = published(root, *names, origin=ORIGIN)
    if others := [name for name in names if name != path.name and (Path(root) / name).is_file()]:
        raise ValueError(f"{root!r} has both {path.name} and {others[0]}; keep the one to read")
    options = {"split": split, "ignore": list(ignore), "video_name": video_name, "bad_clips": bad_clips}

    def make() -> ClipTable:
        if path.suffix == ".jsonl":
            return _lines(path, ignore, _name_in(store, video_name)).table(store, bad_clips)
        table, number_R = _columns(path, DELIMITERS[path.suffix], ignore, store, video_name)
        return checked(table, store, bad_clips, lambda row: f"{path}, row {row}", number_R)

    return cached("videos", [path], options, store, make)


def _name_in(store: str, video_name: str) -> Callable[[str], str]:
    """How the store calls a file: two files that differ in their suffix only keep it."""
    opened, name = open_store(store), naming(video_name)
    return lambda file: file if file in opened else name(file)


def _columns(
    path: Path, delimiter: str, ignore: Sequence[str], store: str, video_name: str
) -> tuple[pa.Table, np.ndarray]:
    found = header(path, delimiter)
    extra = _extra(found, ignore, str(path))
    if lists := [name for name in extra if pa.types.is_list(KNOWN[name])]:
        raise ValueError(f"{path}: column {lists[0]!r} holds lists, for which a row has no place; write JSON lines")
    optional = {name: _kind(name) for name in extra} | dict.fromkeys(("text", *_TIMES), str)
    table, number_R = numbered_csv(path, {"video": str}, optional=optional, delimiter=delimiter)
    opened, name_of = open_store(store), _name_in(store, video_name)
    _check_quotes(table, number_R, path, found, delimiter, lambda file: bare(file) != file or name_of(file) in opened)
    files = table.column("video")
    as_they_are = pa.array(open_store(store).contains_many(files))
    columns = {"video": pc.if_else(as_they_are, files, naming_column(video_name, files))}
    for name, missing in _TIMES.items():
        given = table.column(name) if name in found else pa.chunked_array([pa.array([missing] * len(table))])
        filled = pc.if_else(pc.equal(pc.utf8_trim_whitespace(given), ""), missing, given)
        columns[name] = parse_numbers(filled, float, path, name, number_R)
    empty = pa.array([[]] * len(table), pa.list_(pa.string()))
    if "text" in found:
        told = pc.not_equal(pc.utf8_trim_whitespace(table.column("text")), "").to_numpy()
        if not told.all():
            raise _no_text(f"{path}, row {number_R[np.argmin(told)]}, column 'text'")
    columns["texts"] = one_text(table.column("text")) if "text" in found else empty
    columns |= {name: as_type(table.column(name), KNOWN[name], path, name, number_R) for name in extra}
    return pa.table(columns), number_R


def _no_text(where: str) -> ValueError:
    return ValueError(f"{where}: is empty; write what can be seen, or leave out the clip, or the texts of all clips")


def _check_quotes(
    table: pa.Table, number_R: np.ndarray, path: Path, found: list[str], delimiter: str, known: Callable[[str], bool]
) -> None:
    """Raises where a text has swallowed the clips below it, as a quote that is never closed makes it do.

    A text may well have several lines; one of them is a clip if it has a clip's fields and names a video.
    """
    place = found.index("video")
    for column in (column for column in table.columns if pa.types.is_string(column.type)):
        for row in np.flatnonzero(pc.match_substring(column, "\n").to_numpy()).tolist():
            for line in column[row].as_py().splitlines()[1:]:
                fields = line.split(delimiter)
                if len(fields) >= len(found) and known(fields[place].strip(' "')):
                    where = f"{path}, row {number_R[row]}"
                    raise ValueError(f"{where}: a text holds the clip {short(line)}; is a quote not closed?")


def _lines(path: Path, ignore: Sequence[str], name: Callable[[str], str]) -> Rows:
    rows = Rows(path)
    names: list[str] = []
    for place, item in read_lines(path):
        where = f"{path}, {place}"
        found = _extra(item, ignore, where) if isinstance(item, Mapping) else []
        names = found if not rows.places else names
        if sorted(found) != sorted(names):
            raise ValueError(f"{where}: its keys are {', '.join(item)}; all lines must have the same columns")
        video = name(field(item, "video", str, where))
        clip: dict[str, Any] = {key: field(item, key, float, where) for key in _TIMES if item.get(key) is not None}
        given = [texts(item, key, where) for key in ("text", "texts") if key in item]
        if any(not text.strip() for told in given for text in told):
            raise _no_text(f"{where}: 'text'" if "text" in item else f"{where}: one of 'texts'")
        if len(given) > 1:
            raise ValueError(f"{where}: give 'text' or 'texts', not both")
        more = {key: _value(item, key, where) for key in names}
        rows.add(place, video=video, **clip, texts=given[0] if given else [], **more)
    return rows


def _extra(names: Sequence[str] | Mapping[str, Any], ignore: Sequence[str], where: str) -> list[str]:
    """The names that are columns of a table and none of those that every clip has."""
    rest = [name for name in names if name not in ("video", "text", "texts", *_TIMES, *ignore)]
    for name in rest:
        if name not in KNOWN:
            hint = (
                " (a clip's sentence is its 'text')" if name.lower() in _TEXTS else did_you_mean(name, [*KNOWN, "text"])
            )
            raise ValueError(f"{where}: {name!r} is no column of a table{hint}; pass it over with ignore=[{name!r}]")
    return rest


def _kind(name: str) -> type:
    kind = KNOWN[name]
    return int if pa.types.is_integer(kind) else float if pa.types.is_floating(kind) else str


def _value(item: Mapping[str, Any], name: str, where: str) -> Any:
    kind = KNOWN[name]
    if not pa.types.is_list(kind):
        return field(item, name, _kind(name), where)
    if pa.types.is_string(kind.value_type):
        return texts(item, name, where)
    values = field(item, name, list, where)
    if wrong := [value for value in values if type(value) is not int]:
        raise ValueError(f"{where}: {name!r} must be a list of whole numbers, found {wrong[0]!r} in it")
    return values
