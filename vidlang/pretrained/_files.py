"""Weights wherever they lie: a model's folder, or one file of safetensors or of PyTorch's, read without running any."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.pretrained import _torch
from vidlang.pretrained._known import SCALARS, Array
from vidlang.pretrained._safetensors import INDEX, SINGLE, Entry, Tensors, read_file, read_folder

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Where a checkpoint has its state dict, if not at its root; and what wrappers put before every name in it.
STATES = ("state_dict", "model", "module")
PREFIX = "module."


def read_weights(path: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """The tensors of a folder or a file, each mapped into memory when it is asked for."""
    path = Path(path)
    if not path.is_dir():
        return read_checkpoint(path)[0]
    if (path / INDEX).is_file() or (path / SINGLE).is_file():
        return read_folder(path)
    if (index := path / BIN_INDEX).is_file():
        return _indexed(index)
    if (single := path / BIN).is_file():
        return read_checkpoint(single)[0]
    return read_folder(path)  # says what is there


def read_checkpoint(
    path: str | os.PathLike[str], *, skip: Sequence[str] = ()
) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """(the tensors of a file's state dict, what else it holds that is plain values: an epoch, arguments as a dict).

    The state dict is at the root or under one of STATES, and "module." before all of its names is taken off. skip:
    patterns of the names of classes, "module.Class", whose objects are left out: any other than those of weights,
    plain values and argparse's is an error.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; give one file in it" if path.is_dir() else "is not there; give a file of weights"
        raise ValueError(f"{path} {what}")
    if path.suffix == ".safetensors":
        return read_file(path), {}
    state, others = _state(path, _torch.read(path, skip))
    tensors = {name: value for name, value in state.items() if isinstance(value, Entry)}
    others |= {name: value for name, value in state.items() if name not in tensors}
    if all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): entry for name, entry in tensors.items()}
    return Tensors(tensors), _plain(others)


def _state(path: Path, whole: Any) -> tuple[Mapping[Any, Any], dict[Any, Any]]:
    """(the dict whose values are tensors, what lies beside it and beside what it is in)."""
    others: dict[Any, Any] = {}
    for _ in range(4):
        if not isinstance(whole, dict):
            break
        if any(isinstance(value, Entry) for value in whole.values()):
            if strange := [name for name in whole if not isinstance(name, str)]:
                raise ValueError(f"{path} has a tensor called {strange[0]!r}; names are texts, fetch it again")
            return whole, others
        found = [name for name in STATES if isinstance(whole.get(name), dict)]
        if len(found) != 1:
            break
        others |= {name: value for name, value in whole.items() if name != found[0]}
        whole = whole[found[0]]
    keys = ", ".join(str(key)[:40] for key in list(whole)[:8]) if isinstance(whole, dict) else type(whole).__name__
    raise ValueError(
        f"{path} has no state dict at its root or under one of {', '.join(STATES)}; it has {keys or 'nothing'}"
    )


class _Other(Exception):
    """A value that is no plain one."""


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Those of the values that are plain through and through, as plain dicts, lists and numbers."""
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    for name, value in values.items():
        try:
            found[str(name)] = _copied(value, seen, 0)
        except _Other:
            continue  # an optimizer's tensors, what was skipped
    return found


def _copied(value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, Array):
        return value.numbers
    if depth > 32 or not isinstance(value, dict | list | tuple | set):
        raise _Other
    if id(value) in seen:  # one that lies in several places is copied once; one that lies in itself, never
        if seen[id(value)] is _Other:
            raise _Other
        return seen[id(value)]
    seen[id(value)] = _Other
    if isinstance(value, dict):
        copy: Any = {key: _copied(item, seen, depth + 1) for key, item in value.items()}
    else:
        kind = type(value) if type(value) in (list, tuple, set) else list
        copy = kind(_copied(item, seen, depth + 1) for item in value)
    seen[id(value)] = copy
    return copy


def _indexed(index: Path) -> Mapping[str, np.ndarray]:
    """The tensors of all files of an index, which must be those that it names."""
    folder = index.parent
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / Path(file).name for name, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of files of weights: {error!r}") from None
    paths = sorted(set(files.values()))
    if absent := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which {index.name} names; fetch all files of the model")
    found: dict[str, Entry] = {}
    for path in paths:
        state, _ = _state(path, _torch.read(path))
        entries = {name: value for name, value in state.items() if isinstance(value, Entry)}
        if strange := [name for name in entries if files.get(name) != path]:
            raise ValueError(f"{path} has a tensor {strange[0]!r}, which {index.name} does not say; fetch them again")
        found |= entries
    if lacking := [name for name in files if name not in found]:
        raise ValueError(f"{files[lacking[0]]} has no tensor {lacking[0]!r}, which {index.name} says; fetch them again")
    return Tensors(found)
