"""Safetensors files, read with numpy alone: a header of JSON, then the bytes of each tensor. Nothing is executed.

Only headers are read at first, and whatever is wrong with one is said then. A tensor is mapped into memory when it is
asked for, and is no longer once nobody holds it, so that a model is never in memory twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# A header is small; a file that claims more than this is none.
LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `offset` counts bytes of the whole file.

    strides: how many numbers lie from one to the next along each axis, where they are not row by row.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None

    def read(self) -> np.ndarray:
        """A read-only view of it."""
        count = math.prod(self.shape)
        if self.strides is not None and count:
            count = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        size = self.dtype.itemsize * count
        if not size:  # nothing cannot be mapped
            empty = np.empty(self.shape, self.dtype)
            empty.flags.writeable = False
            return empty
        try:
            raw = np.memmap(self.path, np.uint8, "r", self.offset, (size,))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path} can no longer be read: {error}; something has changed it") from None
        flat = raw.view(np.ndarray).view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        steps = [self.dtype.itemsize * step for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several files by name, read-only."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def read_file(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of one file."""
    return Tensors(read_header(Path(path)))


def read_folder(folder: str | os.PathLike[str]) -> Tensors:
    """All tensors of a model's folder: those of one file, or of several with an index."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with config.json and {SINGLE}")
    if (index := folder / INDEX).is_file():
        return Tensors(_indexed(index))
    if (single := folder / SINGLE).is_file():
        return read_file(single)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    raise ValueError(f"{folder} has no {SINGLE} or {INDEX}; it has {', '.join(others) or 'no file of weights'}")


def read_header(path: Path) -> dict[str, Entry]:
    """Where each tensor of a file lies; ValueError unless they fill the file without gaps and without sharing bytes."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if size >= 8 and length <= min(LARGEST_HEADER, size - 8) else None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if text is None:
        raise ValueError(
            f"{path} is no safetensors file, or is cut off: it has {size} bytes, and its first eight ask for a header "
            f"of {length}; fetch it again"
        )
    try:
        header = json.loads(text.decode("utf-8"))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file: its header is no JSON of tensors ({error})") from None
    entries = {name: _entry(path, name, entry, 8 + length, size) for name, entry in tensors.items()}
    place = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, math.prod(item[1].shape))):
        if entry.offset != place:
            what = "begins inside another" if entry.offset < place else "lies behind bytes of no tensor"
            raise ValueError(f"{path}: tensor {name!r} {what}; the file is damaged, fetch it again")
        place += entry.dtype.itemsize * math.prod(entry.shape)
    if place != size:
        raise ValueError(f"{path} has {size - place} bytes behind its last tensor; it is damaged, fetch it again")
    return entries


def _entry(path: Path, name: str, entry: Any, begin: int, size: int) -> Entry:
    try:
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in (*shape, start, end)):
            raise ValueError("shape and data_offsets are whole numbers from 0 on")
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(DTYPES)
        raise ValueError(f"{path}: tensor {name!r} is described wrongly ({error!r}); dtypes are {known}") from None
    takes = dtype.itemsize * math.prod(shape)
    if not start <= end <= size - begin or end - start != takes:
        raise ValueError(
            f"{path}: tensor {name!r} of {entry['dtype']} {shape} takes {takes} bytes and should lie at {start} to "
            f"{end} of {size - begin}; the file is cut off or damaged, fetch it again"
        )
    return Entry(path, dtype, shape, begin + start)


def _indexed(index: Path) -> dict[str, Entry]:
    """The tensors of all files of an index, which must be those that it names."""
    folder = index.parent
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / Path(file).name for name, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error!r}") from None
    paths = sorted(set(files.values()))
    if absent := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which {INDEX} names; fetch all files of the model")
    found = {path: read_header(path) for path in paths}
    for name, path in files.items():
        if name not in found[path]:
            raise ValueError(f"{path} has no tensor {name!r}, which {INDEX} says is in it; fetch the files again")
    for path, entries in found.items():
        if strange := [name for name in entries if files.get(name) != path]:
            raise ValueError(f"{path} has a tensor {strange[0]!r}, which {INDEX} does not say; fetch the files again")
    return {name: found[path][name] for name, path in files.items()}


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file; a killed process leaves none that is half written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"tensor {name!r} is of {tensor.dtype}; a safetensors file holds {', '.join(DTYPES)}")
        end = start + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())
    os.replace(partial, path)
