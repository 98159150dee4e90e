"""How a family's tensors become parameters: a table of names, both ways, that leaves no tensor over and none out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Turn = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return x


@dataclass(frozen=True)
class Rule:
    """One parameter: its path here, the published name with {} for the number of a layer, and the shape it has here.

    turn: from the published tensor to the parameter (of one layer), back: the other way. layers: how many, 0 where the
    parameter is none of a stack.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    layers: int = 0
    turn: Turn = same
    back: Turn = same


def to_params(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], *, left: Sequence[str] = ()) -> Any:
    """The parameters, float32, each layer read straight into its place of the stacked array.

    `left` are patterns of tensors that a file may have and the model has not. Missing, unused and misshapen tensors are
    one ValueError that lists them.
    """
    wanted = {name: rule for rule in rules for name in _names(rule)}
    missing = [name for name in wanted if name not in tensors]
    unused = [n for n in tensors if n not in wanted and not any(re.fullmatch(pattern, n) for pattern in left)]
    misshapen = []
    params: dict[str, Any] = {}
    for rule in rules:
        names = [name for name in _names(rule) if name in tensors]
        whole = np.empty((rule.layers, *rule.shape) if rule.layers else rule.shape, np.float32)
        for place, name in enumerate(names):
            try:
                found = rule.turn(tensors[name])
            except ValueError:
                found = tensors[name]
            if found.shape != rule.shape:
                misshapen.append(f"{name} {tuple(tensors[name].shape)}, which does not give {rule.path} {rule.shape}")
            elif rule.layers:
                whole[place] = found
            else:
                whole[...] = found
        _put(params, rule.path, whole)
    problems = [
        f"{len(found)} {what}: {_some(found)}"
        for what, found in (("missing", missing), ("unused", unused), ("misshapen", misshapen))
        if found
    ]
    if problems:
        raise ValueError(f"the tensors are not those of this model: {'; '.join(problems)}")
    return params


def to_tensors(params: Any, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The published tensors of these parameters."""
    found = {}
    for rule in rules:
        leaf: Any = params
        for part in rule.path.split("/"):
            leaf = leaf[part]
        leaf = np.asarray(leaf)
        for place, name in enumerate(_names(rule)):
            found[name] = np.ascontiguousarray(rule.back(leaf[place] if rule.layers else leaf))
    return found


def read_config(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a model's folder, of one of the known types."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; give the folder of a Hugging Face model") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in known:
        raise ValueError(f"{path} is of the model_type {kind!r}; this family reads {', '.join(known)}")
    return dict(config)


def without_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> Mapping[str, np.ndarray]:
    """The tensors by their names without this prefix, which some files have and others have not."""
    if not any(name.startswith(prefix) for name in tensors):
        return tensors
    return _Renamed(tensors, {name.removeprefix(prefix): name for name in tensors})


class _Renamed(Mapping[str, np.ndarray]):
    def __init__(self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _names(rule: Rule) -> list[str]:
    return [rule.name.format(layer) for layer in range(rule.layers)] if rule.layers else [rule.name]


def _put(params: dict[str, Any], path: str, leaf: np.ndarray) -> None:
    *folders, last = path.split("/")
    for folder in folders:
        params = params.setdefault(folder, {})
    params[last] = leaf


def _some(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
