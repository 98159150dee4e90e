"""Embeddings of a whole table as Parquet files, each written beside and renamed: it is complete or absent.

    OUT/embeddings.json         which table, how many of its rows a file holds, which of its columns are kept
    OUT/videos/_model.json      what embeds the clips
    OUT/videos/00000.parquet    row, the kept columns, embedding: a line for each clip of the first rows
    OUT/texts/_model.json       what embeds the sentences
    OUT/texts/00000.parquet     row, the kept columns, place, text, embedding: a line for each sentence of them

Which rows a file holds depends on its number alone, and nothing else is remembered of what was done. Several processes
may write into one folder, each its own files.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vidlang.core.config import differing_keys

# Readers of a folder of Parquet files pass over names that begin with _ or a point.
HEADER, NOTE, VERSION = "embeddings.json", "_model.json", 1
KINDS = ("videos", "texts")
DTYPES = ("float16", "float32")
ROW, PLACE, TEXT, EMBEDDING = "row", "place", "text", "embedding"
OWN_COLUMNS = (ROW, PLACE, TEXT, EMBEDDING)
# Where a file says how many of its clips could not be read.
BROKEN = b"vidlang_broken"
PARTIAL = ".partial"
# Files that a sentence names one by one.
_NAMED = 5


class BulkStore:
    """A folder of embeddings that is made, or gone on with; one that holds anything else is refused."""

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """header: of `embeddings.json`, with rows and shard_rows. notes: what embeds, by the kinds that are made."""
        if "://" in str(path):
            raise ValueError(f"{path} is an address, and files are renamed into place: give a folder")
        self.path = Path(os.path.abspath(path))
        self._header, self._notes = {"version": VERSION, **header}, dict(notes)
        self.rows, self.shard_rows = int(header["rows"]), int(header["shard_rows"])
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, found {self.shard_rows}")
        if (self.path / HEADER).is_file():
            _check_same(self.path / HEADER, self._header)
        elif self.path.exists() and not (self.path.is_dir() and _barely_begun(self.path)):
            raise ValueError(f"{self.path} is there and holds no embeddings; give a new folder as --out")
        for kind, note in self._notes.items():
            if (self.path / kind / NOTE).is_file():
                _check_same(self.path / kind / NOTE, note)

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
        if not (self.path / HEADER).is_file():
            _write_json(self.path / HEADER, self._header)
        for kind, note in self._notes.items():
            (self.path / kind).mkdir(exist_ok=True)
            if not (self.path / kind / NOTE).is_file():
                _write_json(self.path / kind / NOTE, note)

    def write(self, kind: str, shard: int, columns: Mapping[str, Any], embedding_VE: np.ndarray, broken: int) -> None:
        """A whole file: its columns, and an embedding for each line in the type that it is kept as."""
        values = pa.FixedSizeListArray.from_arrays(pa.array(embedding_VE.reshape(-1)), embedding_VE.shape[1])
        table = pa.table({**columns, EMBEDDING: values}).replace_schema_metadata({BROKEN: str(broken)})
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

    kind: str
    files: int
    of: int
    lines: int
    broken: int

    def __str__(self) -> str:
        what = "clips" if self.kind == "videos" else "sentences"
        broken = f", {self.broken} of which could not be read and are NaN" if self.broken else ""
        return f"{self.kind}: {self.files} of {self.of} files, {self.lines} {what}{broken}"


def check(path: str | os.PathLike[str]) -> list[Checked]:
    """What a folder holds, after looking into each of its files; ValueError if one is damaged or not as it must be."""
    folder = Path(path)
    header = _read_json(folder / HEADER)
    rows, shard_rows = int(header["rows"]), int(header["shard_rows"])
    shards = -(-rows // shard_rows)
    return [_check_kind(folder, kind, rows, shard_rows, shards) for kind in KINDS if (folder / kind / NOTE).is_file()]


def require_complete(path: str | os.PathLike[str]) -> list[Checked]:
    """The same, and ValueError that names what is missing if not all files are there."""
    found = check(path)
    for each in found:
        if each.files < each.of:
            missing = [s for s in range(each.of) if not file_of(Path(path), each.kind, s).is_file()]
            names = ", ".join(f"{shard:05d}" for shard in missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
            raise ValueError(f"{path} is not complete: {each}; missing are {names}. The same command makes them")
    if not found:
        raise ValueError(f"{path} is not complete: it holds no embeddings yet. The same command makes them")
    return found


def file_of(path: Path, kind: str, shard: int) -> Path:
    """Where a file lies."""
    return path / kind / f"{shard:05d}.parquet"


def _check_kind(folder: Path, kind: str, rows: int, shard_rows: int, shards: int) -> Checked:
    files = lines = broken = 0
    for shard in range(shards):
        path = file_of(folder, kind, shard)
        if not path.is_file():
            continue
        try:
            table = pq.read_table(path, columns=[ROW] if kind == "videos" else [ROW, PLACE])
            broken += int((table.schema.metadata or {})[BROKEN])
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}); remove it and give the command again") from error
        first, last = shard * shard_rows, min(rows, (shard + 1) * shard_rows)
        if not _each_once(table, first, last):
            raise ValueError(f"{path} does not hold rows {first} to {last - 1} once each; remove it and make it again")
        files, lines = files + 1, lines + len(table)
    if extra := len(list((folder / kind).glob("*.parquet"))) - files:
        raise ValueError(f"{folder / kind} holds {extra} Parquet file(s) that are none of its {shards}; move them away")
    return Checked(kind, files, shards, lines, broken)


def _each_once(table: pa.Table, first: int, last: int) -> bool:
    """Whether there is one line for each of these rows, or for each sentence of some of them."""
    row_V = table[ROW].to_numpy()
    if PLACE not in table.column_names:
        return np.array_equal(row_V, np.arange(first, last))
    _, start_V, count_V = np.unique(row_V, return_index=True, return_counts=True)
    place_V = np.arange(len(row_V)) - np.repeat(start_V, count_V)
    inside = not len(row_V) or (row_V[0] >= first and row_V[-1] < last and bool((np.diff(row_V) >= 0).all()))
    return inside and np.array_equal(table[PLACE].to_numpy(), place_V)


def _barely_begun(path: Path) -> bool:
    """Whether a folder holds nothing, or what a process left that was killed before the header was there."""
    return all(left.name.endswith(PARTIAL) for left in path.iterdir())


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    if different := differing_keys(_read_json(path), json.loads(json.dumps(wanted))):
        raise ValueError(
            f"{path} was made with other settings; different are: {', '.join(different)}. Give the same ones to go on, "
            "or another --out"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no embeddings: it has no {path.name}; launch.embed makes one") from None
    except ValueError as error:  # of JSON, and of text that is no UTF-8
        raise ValueError(f"{path} is not the JSON that launch.embed writes: {error}; remove it") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    with half.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)
