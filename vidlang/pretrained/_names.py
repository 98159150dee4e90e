"""How a family's tensors become parameters: a table of names, both ways, that leaves no tensor over and none out."""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidlang.core.tree import flatten_paths, nest

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

    @property
    def names(self) -> list[str]:
        """The published names, one a layer."""
        return [self.name.format(layer) for layer in range(self.layers)] if self.layers else [self.name]

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape with all layers."""
        return (self.layers, *self.shape) if self.layers else self.shape


def check_tensors(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], *, left: Sequence[str] = ()) -> None:
    """ValueError that lists missing, unused and misshapen tensors. Reads no numbers.

    `left` are patterns of tensors that a file may have and the model has not.
    """
    wanted = {name: rule for rule in rules for name in rule.names}
    missing = [name for name in wanted if name not in tensors]
    unused = [n for n in tensors if n not in wanted and not any(re.fullmatch(pattern, n) for pattern in left)]
    misshapen, other = [], []
    for name, rule in wanted.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        try:
            shape = rule.turn(tensor).shape
        except ValueError:  # a reshape that cannot be
            shape = None
        if shape != rule.shape:
            misshapen.append(f"{name} {tuple(tensor.shape)}, which does not give {rule.path} {rule.shape}")
        if tensor.dtype.kind in "iub":  # as of weights in few bits
            other.append(f"{name} {tensor.dtype}")
    problems = [
        f"{len(found)} {what}: {_some(found)}"
        for what, found in (("missing", missing), ("unused", unused), ("misshapen", misshapen), ("not floating", other))
        if found
    ]
    if problems:
        raise ValueError(f"the tensors are not those of this model: {'; '.join(problems)}")


class Leaf:
    """A parameter that is still in its files: read where it is asked for, as a whole or in part, and not kept."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensors: Mapping[str, np.ndarray], rule: Rule) -> None:
        self._tensors, self._rule, self.shape = tensors, rule, rule.whole

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The part that a device holds, by a slice for each axis; of a stack, only its layers are read."""
        rule, index = self._rule, index if isinstance(index, tuple) else (index,)
        if not rule.layers:
            return np.asarray(rule.turn(self._tensors[rule.name])[index], np.float32)
        first, *rest = index or (slice(None),)
        names = np.array(rule.names, object)[first]
        if isinstance(names, str):
            return np.asarray(rule.turn(self._tensors[names])[tuple(rest)], np.float32)
        parts = (rule.turn(self._tensors[name])[tuple(rest)] for name in names)
        whole: np.ndarray | None = None
        for place, part in enumerate(parts):
            whole = _aligned((len(names), *part.shape)) if whole is None else whole
            whole[place] = part
        return np.empty((0, *rule.shape), np.float32)[:, *rest] if whole is None else whole

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...].astype(dtype or self.dtype, copy=False)


def _aligned(shape: tuple[int, ...], to: int = 64) -> np.ndarray:
    """An empty array that a CPU device takes over as it is, where it would copy one that begins anywhere."""
    raw = np.empty(4 * math.prod(shape) + to, np.uint8)
    start = -raw.ctypes.data % to
    return raw[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)


_LAZY = contextvars.ContextVar("lazy", default=False)


@contextlib.contextmanager
def left_in_files() -> Iterator[None]:
    """In here, families give each parameter as a `Leaf`, so that whoever places them holds one of them at a time."""
    token = _LAZY.set(True)
    try:
        yield
    finally:
        _LAZY.reset(token)


def to_params(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], *, left: Sequence[str] = ()) -> Any:
    """The parameters, float32, each layer read straight into its place of the stacked array; see `check_tensors`."""
    check_tensors(tensors, rules, left=left)
    leaves = {rule.path: Leaf(tensors, rule) for rule in rules}
    return nest(leaves if _LAZY.get() else {path: np.asarray(leaf) for path, leaf in leaves.items()})


def to_shapes(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], *, left: Sequence[str] = ()) -> Any:
    """What `to_params` gives, as shapes."""
    check_tensors(tensors, rules, left=left)
    return nest({rule.path: jax.ShapeDtypeStruct(rule.whole, np.float32) for rule in rules})


def to_tensors(params: Any, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The published tensors of these parameters; ValueError where they are not exactly those of the rules."""
    leaves, wanted = flatten_paths(params), {rule.path: rule.whole for rule in rules}
    problems = [f"{path} is missing" for path in wanted if path not in leaves]
    problems += [f"{path} is not of it" for path in leaves if path not in wanted]
    for path in wanted.keys() & leaves.keys():
        if tuple(leaves[path].shape) != wanted[path]:
            problems.append(f"{path} is {tuple(leaves[path].shape)}, not {wanted[path]}")
    if problems:
        raise ValueError(f"the parameters are not those of the model that config.json describes: {_some(problems)}")
    found = {}
    for rule in rules:
        leaf = np.asarray(leaves[rule.path])
        for place, name in enumerate(rule.names):
            found[name] = np.asarray(rule.back(leaf[place] if rule.layers else leaf), order="C")  # keeps a number one
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


def need(config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """ValueError where config.json lacks one of these."""
    if lacking := [key for key in keys if config.get(key) is None]:
        raise ValueError(f"config.json lacks {', '.join(lacking)}; fetch it again from where the weights are")


def without_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> Mapping[str, np.ndarray]:
    """The tensors by their names without this prefix, which some files have and others have not."""
    names: dict[str, str] = {}
    for name in tensors:
        short = name.removeprefix(prefix)
        if short in names:
            raise ValueError(f"the file has both {names[short]} and {name}, which are one tensor; fetch it again")
        names[short] = name
    return Renamed(tensors, {short: (name, same) for short, name in names.items()})


class Renamed(Mapping[str, np.ndarray]):
    """Tensors by other names, each with how it is got from the one that it is, or is a part of."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, Turn]]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> np.ndarray:
        theirs, turn = self._names[name]
        return turn(self._tensors[theirs])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _some(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
