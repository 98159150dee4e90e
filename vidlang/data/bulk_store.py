"""What a model makes of all rows of a table, as Parquet files, each written beside and renamed: complete or absent.

    OUT/embeddings.json           which table, how many of its rows a file holds, which of its columns are kept
    OUT/videos/_model.json        what embeds the clips
    OUT/videos/00000.parquet      row, the kept columns, embedding: a line for each clip of the first rows
    OUT/texts/_model.json         what embeds the sentences
    OUT/texts/00000.parquet       row, the kept columns, place, text, embedding: a line for each sentence of them

    OUT/captions.json             the same of captions, and how many of them a clip has
    OUT/captions/_model.json      what captions the clips
    OUT/captions/00000.parquet    row, the kept columns, prompt, place, caption, score: a line for each caption; for a
                                  clip that could not be read one line without caption and score

Which rows a file holds depends on its number alone, and nothing else is remembered of what was done. Several processes
may write into one folder, each its own files.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidlang.core.config import differing_keys

# Readers of a folder of Parquet files pass over names that begin with _ or a point.
NOTE, VERSION = "_model.json", 1
DTYPES = ("float16", "float32")
ROW, PLACE, TEXT, EMBEDDING = "row", "place", "text", "embedding"
PROMPT, CAPTION, SCORE = "prompt", "caption", "score"
# Where a file says how many of its clips could not be read.
BROKEN = b"vidlang_broken"
PARTIAL = ".partial"
# Files that a sentence names one by one.
_NAMED = 5


@dataclass(frozen=True)
class Kind:
    """One sort of files.

    lines: what its lines are called. lost: how those are told that stand for clips which could not be read. read: the
    columns that a check looks at. holds: whether they are as they must be for these rows, by the folder's header.
    """

    name: str
    lines: str
    lost: str
    read: tuple[str, ...]
    holds: Callable[[pa.Table, range, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Holding:
    """What one sort of folder holds, what makes it, and the columns of its files that are not the table's."""

    what: str
    maker: str
    own: tuple[str, ...]
    kinds: tuple[Kind, ...]

    @property
    def header(self) -> str:
        """The name of the file that says which table it is about."""
        return f"{self.what}.json"


class BulkStore:
    """A folder that is made, or gone on with; one that holds anything else is refused."""

    def __init__(
        self, path: str | os.PathLike[str], holding: Holding, header: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        """header: of the folder, with rows and shard_rows. notes: what makes the files, by the kinds that are made."""
        if "://" in str(path):
            raise ValueError(f"{path} is an address, and files are renamed into place: give a folder")
        self.path = Path(os.path.abspath(path))
        self._header, self._notes = {"version": VERSION, **header}, dict(notes)
        self._header_path = self.path / holding.header
        self.rows, self.shard_rows = int(header["rows"]), int(header["shard_rows"])
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, found {self.shard_rows}")
        if self._header_path.is_file():
            _check_same(self._header_path, self._header, holding)
        elif self.path.exists() and not (self.path.is_dir() and _barely_begun(self.path)):
            raise ValueError(f"{self.path} is there and holds no {holding.what}; give a new folder as --out")
        for kind, note in self._notes.items():
            if (self.path / kind / NOTE).is_file():
                _check_same(self.path / kind / NOTE, note, holding)

    @property
    def shards(self) -> int:
        """How many files each kind has when it is complete."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of the table that a file is about."""
        return range(shard * self.shard_rows, min(self.rows, (shard + 1) * self.shard_rows))

    def has(self, kind: str, shard: int) -> bool:
        """Whether this file is there, which means complete."""
        return file_of(self.path, kind, shard).is_file()

    def begin(self) -> None:
        """Writes what says what the files are, where it is not there yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._header_path.is_file():
            _write_json(self._header_path, self._header)
        for kind, note in self._notes.items():
            (self.path / kind).mkdir(exist_ok=True)
            if not (self.path / kind / NOTE).is_file():
                _write_json(self.path / kind / NOTE, note)

    def write(self, kind: str, shard: int, columns: Mapping[str, Any], broken: int) -> None:
        """A whole file, of which so many clips could not be read."""
        table = pa.table(dict(columns)).replace_schema_metadata({BROKEN: str(broken)})
        path = file_of(self.path, kind, shard)
        # A name of its own each time: who was told to do the same work at the same time writes the same file, whole.
        half = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        with half.open("wb") as file:
            pq.write_table(table, file, use_dictionary=["video"])
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)

    def lacking(self, kind: str) -> list[int]:
        """The files that are not there."""
        return [shard for shard in range(self.shards) if not self.has(kind, shard)]

    def standing(self) -> list[str]:
        """How many files there are of each kind."""
        return [f"{kind}: {self.shards - len(self.lacking(kind))} of {self.shards} files" for kind in self._notes]

    def sweep(self) -> None:
        """Removes what killed processes left half written, once all files are there."""
        if not any(self.lacking(kind) for kind in self._notes):
            for folder in (self.path, *(self.path / kind for kind in self._notes)):
                for left in folder.glob(f".*{PARTIAL}"):
                    left.unlink(missing_ok=True)


@dataclass(frozen=True)
class Checked:
    """What is there of one kind: files of how many, lines in them, and clips that could not be read."""

    kind: Kind
    files: int
    of: int
    lines: int
    broken: int

    def __str__(self) -> str:
        broken = f", {self.broken} {self.kind.lost}" if self.broken else ""
        return f"{self.kind.name}: {self.files} of {self.of} files, {self.lines} {self.kind.lines}{broken}"


def check(path: str | os.PathLike[str], holding: Holding) -> list[Checked]:
    """What a folder holds, after looking into each of its files; ValueError if one is damaged or not as it must be."""
    folder = Path(path)
    header = _read_json(folder / holding.header, holding)
    return [_check_kind(folder, kind, header) for kind in holding.kinds if (folder / kind.name / NOTE).is_file()]


def require_complete(path: str | os.PathLike[str], holding: Holding) -> list[Checked]:
    """The same, and ValueError that names what is missing if not all files are there."""
    found = check(path, holding)
    for each in found:
        if each.files < each.of:
            missing = [s for s in range(each.of) if not file_of(Path(path), each.kind.name, s).is_file()]
            names = ", ".join(f"{shard:05d}" for shard in missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
            raise ValueError(f"{path} is not complete: {each}; missing are {names}. The same command makes them")
    if not found:
        raise ValueError(f"{path} is not complete: it holds no {holding.what} yet. The same command makes them")
    return found


def file_of(path: Path, kind: str, shard: int) -> Path:
    """Where a file lies."""
    return path / kind / f"{shard:05d}.parquet"


def _check_kind(folder: Path, kind: Kind, header: Mapping[str, Any]) -> Checked:
    rows, shard_rows = int(header["rows"]), int(header["shard_rows"])
    shards, files, lines, broken = -(-rows // shard_rows), 0, 0, 0
    for shard in range(shards):
        path = file_of(folder, kind.name, shard)
        if not path.is_file():
            continue
        try:
            table = pq.read_table(path, columns=list(kind.read))
            broken += lost_of(table)
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); remove it and give the command again") from error
        first, last = shard * shard_rows, min(rows, (shard + 1) * shard_rows)
        if not kind.holds(table, range(first, last), header):
            raise ValueError(f"{path} does not hold rows {first} to {last - 1} once each; remove it and make it again")
        files, lines = files + 1, lines + len(table)
    if extra := len(list((folder / kind.name).glob("*.parquet"))) - files:
        raise ValueError(
            f"{folder / kind.name} holds {extra} Parquet file(s) that are none of its {shards}; move them away"
        )
    return Checked(kind, files, shards, lines, broken)


def lost_of(table: pa.Table) -> int:
    """How many clips of a file could not be read, as it says."""
    return int((table.schema.metadata or {})[BROKEN])


def _each_row(table: pa.Table, rows: range, header: Mapping[str, Any]) -> bool:
    """Whether there is one line for each of these rows."""
    del header
    return np.array_equal(table[ROW].to_numpy(), np.arange(rows.start, rows.stop))


def _each_sentence(table: pa.Table, rows: range, header: Mapping[str, Any]) -> bool:
    """Whether there is one line for each sentence of some of these rows."""
    del header
    row_V = table[ROW].to_numpy()
    inside = not len(row_V) or bool(row_V[0] >= rows.start and row_V[-1] < rows.stop)
    return inside and _in_places(table)


def _each_caption(table: pa.Table, rows: range, header: Mapping[str, Any]) -> bool:
    """Whether each of these rows has all its captions, or the one line of a clip that could not be read."""
    row_V, told_V = table[ROW].to_numpy(), table[CAPTION].is_valid().to_numpy()
    row_R, first_R, count_R = np.unique(row_V, return_index=True, return_counts=True)
    if not (np.array_equal(row_R, np.arange(rows.start, rows.stop)) and _in_places(table)):
        return False
    alike = np.array_equal(told_V, np.repeat(told_V[first_R], count_R))
    scored = np.array_equal(told_V, table[SCORE].is_valid().to_numpy())
    counted = np.array_equal(count_R, np.where(told_V[first_R], int(header["samples"]), 1))
    return alike and scored and counted and int((~told_V).sum()) == lost_of(table)


def _in_places(table: pa.Table) -> bool:
    """Whether rows follow one another, and the lines of each are counted from 0."""
    row_V = table[ROW].to_numpy()
    _, start_V, count_V = np.unique(row_V, return_index=True, return_counts=True)
    place_V = np.arange(len(row_V)) - np.repeat(start_V, count_V)
    return bool((np.diff(row_V) >= 0).all()) and np.array_equal(table[PLACE].to_numpy(), place_V)


def _barely_begun(path: Path) -> bool:
    """Whether a folder holds nothing, or what a process left that was killed before the header was there."""
    return all(left.name.endswith(PARTIAL) for left in path.iterdir())


def _check_same(path: Path, wanted: Mapping[str, Any], holding: Holding) -> None:
    if different := differing_keys(_read_json(path, holding), json.loads(json.dumps(wanted))):
        raise ValueError(
            f"{path} was made with other settings; different are: {', '.join(different)}. Give the same ones to go on, "
            "or another --out"
        )


def _read_json(path: Path, holding: Holding) -> dict[str, Any]:
    what, maker = holding.what, holding.maker
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no {what}: it has no {path.name}; {maker} makes one") from None
    except ValueError as error:  # of JSON, and of text that is no UTF-8
        raise ValueError(f"{path} is not the JSON that {maker} writes: {error}; remove it") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    with half.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


_LOST = "of which could not be read and are NaN"
VIDEOS = Kind("videos", "clips", _LOST, (ROW,), _each_row)
TEXTS = Kind("texts", "sentences", _LOST, (ROW, PLACE), _each_sentence)
EMBEDDINGS = Holding("embeddings", "launch.embed", (ROW, PLACE, TEXT, EMBEDDING), (VIDEOS, TEXTS))
_UNTOLD = "of them for clips that could not be read"
SAID = Kind("captions", "lines", _UNTOLD, (ROW, PLACE, CAPTION, SCORE), _each_caption)
CAPTIONS = Holding("captions", "launch.caption", (ROW, PROMPT, PLACE, CAPTION, SCORE), (SAID,))
