"""Safetensors files, read with numpy alone: a header of JSON, then the bytes of each tensor. Nothing is executed.

Files are mapped into memory, so that a tensor costs nothing until it is looked at. Several files with an index are one
mapping. Whatever is wrong with a file is said before any of it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
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


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several files by name, read-only views into the mapped files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files`: which file each tensor is in."""
        self._files = dict(files)
        self._opened: dict[Path, dict[str, np.ndarray]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._files[name]
        if path not in self._opened:
            self._opened[path] = read_file(path)
        if name not in self._opened[path]:
            raise ValueError(f"{path} has no tensor {name!r}, which the index says is in it; fetch the files again")
        return self._opened[path][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of one file, as views into it."""
    path = Path(path)
    try:
        content = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if len(content) < 8:
        raise ValueError(f"{path} is no safetensors file: it has {len(content)} bytes; fetch it again")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > min(LARGEST_HEADER, len(content) - 8):
        raise ValueError(
            f"{path} is no safetensors file, or is cut off: its header should have {length} bytes, and the file has "
            f"{len(content)} in all; fetch it again"
        )
    try:
        header = json.loads(content[8 : 8 + length].tobytes())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no safetensors file: its header is no JSON ({error})") from None
    return {name: _view(path, name, entry, content[8 + length :]) for name, entry in entries.items()}


def _view(path: Path, name: str, entry: Any, data: np.ndarray) -> np.ndarray:
    try:
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"])), entry["data_offsets"]
        size = dtype.itemsize * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(DTYPES)
        raise ValueError(f"{path}: tensor {name!r} is described wrongly ({error!r}); dtypes are {known}") from None
    if not (0 <= start <= end <= len(data)) or end - start != size or any(n < 0 for n in shape):
        raise ValueError(
            f"{path}: tensor {name!r} of {entry['dtype']} {shape} takes {size} bytes and should lie at {start} to "
            f"{end} of {len(data)}; the file is cut off or damaged, fetch it again"
        )
    return data[start:end].view(dtype).reshape(shape)


def read_folder(folder: str | os.PathLike[str]) -> Tensors:
    """All tensors of a model's folder: one file, or several with an index; a path of one file is taken as it is."""
    folder = Path(folder)
    if folder.is_file():
        return Tensors({name: folder for name in read_file(folder)})
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with config.json and model.safetensors")
    if (index := folder / INDEX).is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): folder / Path(file).name for name, file in weight_map.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is no index of safetensors files: {error!r}") from None
        if absent := sorted({path.name for path in files.values() if not path.is_file()}):
            raise ValueError(f"{folder} lacks {', '.join(absent)}, which {INDEX} names; fetch all files of the model")
        return Tensors(files)
    if (single := folder / SINGLE).is_file():
        return Tensors({name: single for name in read_file(single)})
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".safetensors"))
    raise ValueError(f"{folder} has no {SINGLE} or {INDEX}; it has {', '.join(others) or 'no file of weights'}")


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
