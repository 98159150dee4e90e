"""Reads a feature store: the vectors of one clip at a time, from files that are mapped into memory."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.core.config import did_you_mean

VERSION = 1
HEADER, INDEX, NOTE = "store.json", "index.arrow", "variant.json"
# Each costs a file handle, of which a process has about a thousand.
_FILES_OPEN = 128


class FeatureStore:
    """The features in a folder; pickles by its path, and what was not asked for is not read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self.settings = read_json(self.path / HEADER, "a feature store")
        if self.settings.get("version") != VERSION:
            raise ValueError(
                f"{self.path} has format version {self.settings.get('version')}, this code reads {VERSION}; extract "
                "the features anew"
            )
        self.index = pa.ipc.open_file(pa.memory_map(str(self.path / INDEX))).read_all()
        self._notes: dict[str, dict[str, Any]] = {}
        self._mapped = functools.lru_cache(_FILES_OPEN)(self._map)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (str(self.path),)

    def __len__(self) -> int:
        return self.index.num_rows

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}: {len(self)} clips, {', '.join(self.variants) or 'no variants'})"

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that were begun, sorted."""
        return tuple(sorted(note.parent.name for note in self.path.glob(f"*/{NOTE}")))

    def note(self, variant: str) -> dict[str, Any]:
        """What a variant comes from: model, step, dials, and how clips were looked at."""
        if variant not in self._notes:
            if variant not in (known := self.variants):
                raise ValueError(
                    f"{self.path} has no features {variant!r}{did_you_mean(variant, known)}; it has: "
                    f"{', '.join(known) or 'none'}"
                )
            self._notes[variant] = read_json(self.path / variant / NOTE, "a variant of a feature store")
        return self._notes[variant]

    def width(self, variant: str) -> int:
        """Numbers in a vector of a variant that has its first file."""
        return int(self._mapped(variant, self.index["file"][0].as_py()).shape[1])

    def missing(self, variant: str) -> list[str]:
        """Names of the files that a variant still lacks."""
        self.note(variant)
        there = {entry.name for entry in os.scandir(self.path / variant)}
        return [file for file in pc.unique(self.index["file"]).to_pylist() if f"{file}.npy" not in there]

    def check_complete(self, variant: str) -> None:
        """ValueError for a variant that lacks a file."""
        if missing := self.missing(variant):
            raise ValueError(
                f"{self.path}/{variant} lacks {len(missing)} files, the first is {missing[0]}.npy; the command that "
                "began to extract it goes on where it ended"
            )

    def read(self, row: int, variant: str) -> np.ndarray:
        """float32 [count, width] of the clip in row `row` of the index; NaN where it could not be read."""
        file, offset, count = (self.index[name][row].as_py() for name in ("file", "offset", "count"))
        return np.array(self._mapped(variant, file)[offset : offset + count], np.float32)

    def _map(self, variant: str, file: str) -> np.ndarray:
        path = self.path / variant / f"{file}.npy"
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is no array of features: {error}; remove it and extract it anew") from error
        return array


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a file of a store."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is not {what}: it has no {path.name}; python -m launch.extract makes one"
        ) from None
    except ValueError as error:  # of JSON, and of text that is no UTF-8
        raise ValueError(f"{path} is not the JSON that an extraction writes: {error}") from error
