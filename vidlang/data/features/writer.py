"""Writes a feature store, one file at a time: each is written beside and renamed, so it is complete or absent.

Nothing else is remembered of what was done. Several processes may write into one store, each its own files.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from vidlang.core.config import differing_keys
from vidlang.data.features.cuts import Cuts
from vidlang.data.features.store import HEADER, INDEX, NOTE, VERSION, read_json

DTYPES = ("float16", "float32")


class FeatureWriter:
    """A store that is made, or gone on with, in `path`; one that holds anything else is refused.

    Nothing is written before the first vectors are: what cannot be encoded leaves no trace.
    """

    def __init__(self, path: str | os.PathLike[str], cuts: Cuts, *, frames: int) -> None:
        """frames: of each segment or window."""
        if "://" in str(path):
            raise ValueError(f"{path} is an address, and features are mapped into memory: give a folder")
        self.path = Path(os.path.abspath(path))
        self._settings, self._index = {"version": VERSION, **cuts.settings, "frames": frames}, cuts.index
        self._notes: dict[str, Mapping[str, Any]] = {}
        if (header := self.path / HEADER).is_file():
            _check_same(header, read_json(header, "a feature store"), self._settings, "another --out")
        elif self.path.exists() and not _is_barely_begun(self.path):
            raise ValueError(f"{self.path} is there and holds no features; give a new folder as --out")

    def begin(self, variant: str, note: Mapping[str, Any]) -> None:
        """Takes on a variant; what already lies there must come from the same model and settings."""
        if not re.fullmatch(r"[\w-][\w.-]*", variant):
            raise ValueError(f"a variant's name is a folder's name: letters, digits, -, _ and .; found {variant!r}")
        path = self.path / variant / NOTE
        if path.is_file():
            _check_same(path, read_json(path, "a variant"), note, "another name, --variant")
        self._notes[variant] = note

    def has(self, variant: str, file: str) -> bool:
        """Whether this file is there, which means complete."""
        return self._place(variant, file).is_file()

    def write(self, variant: str, file: str, features_VD: np.ndarray, dtype: str) -> None:
        """Keeps the vectors of a piece."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; found {dtype!r}")
        with np.errstate(over="ignore"):  # told of below
            kept_VD = features_VD.astype(dtype)
        if np.isinf(kept_VD).any():
            raise ValueError(
                f"features of {variant!r} are too large for {dtype}, up to {np.nanmax(np.abs(features_VD)):.3g}; "
                "extract them as float32"
            )
        self._make(variant)
        # The same name each time: a file that a killed process left half written is written over.
        _write(self._place(variant, file), lambda handle: np.save(handle, kept_VD, allow_pickle=False), "half")

    def _make(self, variant: str) -> None:
        """Header and note, where they are not there yet; each is the last that makes its folder what it is."""
        if not (self.path / HEADER).is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self.path / INDEX, lambda file: _write_arrow(file, self._index), secrets.token_hex(4))
            _write_json(self.path / HEADER, self._settings)
        if not (note := self.path / variant / NOTE).is_file():
            note.parent.mkdir(exist_ok=True)
            _write_json(note, self._notes[variant])

    def _place(self, variant: str, file: str) -> Path:
        return self.path / variant / f"{file}.npy"


def _is_barely_begun(path: Path) -> bool:
    """Whether a folder holds nothing, or what a process left that was killed before the header was there."""
    return path.is_dir() and all(left.name == INDEX or left.name.endswith(".partial") for left in path.iterdir())


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], way_out: str) -> None:
    wanted = json.loads(json.dumps(wanted))
    if different := differing_keys(found, wanted):
        raise ValueError(
            f"{path} was made with other settings; different are: {', '.join(different)}. Give the same ones to go on, "
            f"or {way_out}"
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2) + "\n"
    _write(path, lambda file: file.write(text.encode()), secrets.token_hex(4))


def _write_arrow(file: IO[bytes], table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=1 << 20)


def _write(path: Path, write: Callable[[IO[bytes]], object], token: str) -> None:
    """Calls `write` with a file that takes its name when all of it is on the disk."""
    half = path.with_name(f"{path.name}.{token}.partial")
    with half.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)
