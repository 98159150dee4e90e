"""What the pickles of files of weights name, and what is made of it: tensors, and plain values around them.

A name that is not here is refused by `_pickle`. What is made of tensors are `_safetensors.Entry`s, which tell where
their numbers lie; no function here does more than check and build.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vidlang.pretrained._safetensors import Entry

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
# Bytes whose tensors say themselves what of.
UNTYPED = "torch.storage.UntypedStorage"
DTYPES = {
    "torch.float64": np.dtype(np.float64),
    "torch.float32": np.dtype(np.float32),
    "torch.float16": np.dtype(np.float16),
    "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
    "torch.int64": np.dtype(np.int64),
    "torch.int32": np.dtype(np.int32),
    "torch.int16": np.dtype(np.int16),
    "torch.int8": np.dtype(np.int8),
    "torch.uint8": np.dtype(np.uint8),
    "torch.bool": np.dtype(np.bool_),
}
SCALARS = (str, bytes, int, float, type(None))  # bool is an int


class Refused(ValueError):
    """A pickle that says what it must not; the message goes on after the file's name."""


@dataclass(frozen=True)
class Global:
    """What a pickle names; never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers that tensors are parts of: where in the file, and how many bytes. dtype: None where untyped."""

    path: Path
    dtype: np.dtype | None
    offset: int
    size: int


class Fields(dict[str, Any]):
    """The attributes of an object that is only these: argparse.Namespace, or a module of TorchScript."""


class Skipped:
    """An object of a class that is known to be of no use."""


@dataclass
class Kind:
    """A dtype of numpy's while it is made."""

    code: str


@dataclass
class Array:
    """An array of numpy's while it is made."""

    numbers: np.ndarray


def storage_of(kind: Any, count: Any, path: Path, offset: int, room: int) -> Storage:
    """Of so many numbers of this kind, whose bytes begin at `offset` and may be `room` bytes."""
    name = kind.name if isinstance(kind, Global) else None
    if name != UNTYPED and name not in STORAGES:
        raise Refused(f"has a storage of {kind}; those that are read are {', '.join(STORAGES)}")
    dtype = STORAGES.get(str(name))
    size = _whole(count) * (dtype.itemsize if dtype else 1)
    if size > room:
        raise Refused(f"claims {size} bytes of numbers where it has {room}; it is cut off or damaged, fetch it again")
    return Storage(path, dtype, offset, size)


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, *others: Any, dtype: Any = None) -> Entry:
    """A part of a storage; the others are whether it is trained, and hooks."""
    del others
    if not isinstance(storage, Storage):
        raise Refused("has a tensor without a storage; it is damaged, fetch it again")
    kind = storage.dtype if dtype is None else DTYPES.get(dtype.name if isinstance(dtype, Global) else "")
    if kind is None:
        raise Refused(f"has a tensor of {dtype}; those that are read are {', '.join(DTYPES)}")
    shape, strides = tuple(map(_whole, shape)), tuple(map(_whole, strides))
    if len(shape) > 16:
        raise Refused(f"has a tensor of {len(shape)} axes; it is damaged, fetch it again")
    count = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if max(_whole(first) + count, math.prod(shape)) * kind.itemsize > storage.size:
        raise Refused(
            f"has a tensor {shape} at {first} by {strides} of a storage of {storage.size} bytes, which does not hold "
            "it; it is damaged, fetch it again"
        )
    return Entry(storage.path, kind, shape, storage.offset + first * kind.itemsize, strides)


def _tensor_of(storage: Any, first: Any, shape: Any, strides: Any, trained: Any, hooks: Any, dtype: Any) -> Entry:
    return _tensor(storage, first, shape, strides, trained, hooks, dtype=dtype)


def _whole(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 1 << 48:
        raise Refused(f"has a size {str(n)[:40]!r}, which is no whole number from 0 on; it is damaged, fetch it again")
    return n


def pairs(items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict whose keys are plain: to hash others may take any time and depth."""
    found = {}
    for key, value in items:
        if not isinstance(key, SCALARS):
            raise Refused(f"has a dict whose key is a {type(key).__name__}; give the state dict alone")
        found[key] = value
    return found


def plain_set(items: Iterable[Any] = ()) -> set[Any]:
    """A set of plain items."""
    return set(pairs((item, None) for item in items))


def _ordered(found: Any = ()) -> dict[Any, Any]:
    return pairs((key, value) for key, value in (found.items() if isinstance(found, dict) else found))


def _parameter(tensor: Any, *others: Any) -> Any:
    del others  # whether it is trained, hooks, and attributes of subclasses
    return tensor


def _encoded(text: str, code: str = "latin1") -> bytes:
    if code not in ("latin1", "latin-1"):
        raise Refused(f"has bytes written as {code!r} text; it is damaged, fetch it again")
    return text.encode("latin1")


def numpy_dtype(kind: Any) -> np.dtype:
    """A numpy dtype of numbers; never one of objects, which would point into memory."""
    if not isinstance(kind, Kind) or not re.fullmatch(r"[<|=]?[fiub][1248]", kind.code):
        raise Refused(f"has an array of {getattr(kind, 'code', kind)!r}; arrays of little-endian numbers are read")
    return np.dtype(kind.code)


def _scalar(kind: Any, raw: bytes) -> Any:
    return np.frombuffer(raw, numpy_dtype(kind)).reshape(()).item()


def _path(*parts: str) -> str:
    return str(Path(*parts))


# What names that are called make. The others of a name's arguments are none of numbers.
CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda sizes: tuple(map(_whole, sizes)),
    "torch.device": lambda *parts: ":".join(map(str, parts)),
    "torch.jit._pickle.build_intlist": list,
    "torch.jit._pickle.build_doublelist": list,
    "torch.jit._pickle.build_boollist": list,
    "torch.jit._pickle.build_tensorlist": list,
    "torch.jit._pickle.restore_type_tag": _parameter,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "collections.defaultdict": lambda *of: {},
    "builtins.set": plain_set,
    "__builtin__.set": plain_set,
    "__builtin__.bytes": lambda: b"",
    "argparse.Namespace": Fields,
    "pathlib.PosixPath": _path,
    "pathlib.WindowsPath": _path,
    "_codecs.encode": _encoded,
    "numpy.dtype": lambda code, *others: Kind(str(code)),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": lambda *others: Array(np.empty(0)),
    "numpy._core.multiarray._reconstruct": lambda *others: Array(np.empty(0)),
}
# What is only named, as an argument.
PLAIN = {*STORAGES, UNTYPED, *DTYPES, "numpy.ndarray", "builtins.dict", "__builtin__.dict", "builtins.list"}
