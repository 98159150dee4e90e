"""Where published tensors and parameters are not one to one: what one side has as one, as a sum, or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vidlang.core.tree import flatten_paths, nest
from vidlang.pretrained._names import Renamed, Rule, Turn, same, to_params, to_shapes, to_tensors

Flat = dict[str, Any]


@dataclass(frozen=True)
class Fused:
    """One published tensor, or one a layer, that is several here: the names and sizes of its parts along an axis.

    Names have {} for the number of the layer. The last part is whatever is left, so that no entry is overlooked.
    """

    name: str
    parts: Mapping[str, int]
    layers: int = 0
    axis: int = 0

    def each(self) -> list[tuple[str, list[str]]]:
        """(published name, names of its parts), one a layer."""
        numbers = range(self.layers) if self.layers else [0]
        return [(self.name.format(n), [part.format(n) for part in self.parts]) for n in numbers]

    def turns(self) -> list[Turn]:
        """What cuts each part out."""
        sizes = list(self.parts.values())
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        bounds = zip([0, *ends], [*ends, None], strict=True)
        return [functools.partial(_cut, axis=self.axis, start=start, stop=stop) for start, stop in bounds]


def thirds(name: str, width: int, layers: int) -> list[Fused]:
    """Weights and biases of query, key and value that lie in one linear map `name`; its parts are `name`.query, ..."""
    return [
        Fused(f"{name}.{end}", {f"{name}.{part}.{end}": width for part in ("query", "key", "value")}, layers)
        for end in ("weight", "bias")
    ]


@dataclass(frozen=True)
class Fold:
    """Published parameters that are made part of others here, and that do nothing on the way out.

    into: paths of the parameters that stay; gone: those that do not, each with what makes it do nothing, and merge
    gives the former from all of them.
    """

    into: tuple[str, ...]
    gone: Mapping[str, Callable[[], np.ndarray]]
    merge: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def added(path: str, gone: str, shape: tuple[int, ...]) -> Fold:
    """A parameter that another is added to: cls, and the position that it has in published models."""
    return Fold((path,), {gone: lambda: np.zeros(shape, np.float32)}, lambda x: {path: x[path] + x[gone]})


@dataclass(frozen=True)
class Fixed:
    """A parameter that the published model has not, and the number that makes it do nothing. why: to mend the rest.

    inert: it does nothing whatever its numbers are, as a key's bias, which adds the same to all that a query is
    compared with. Training moves it a little off its number; it is left out on the way back.
    """

    path: str
    shape: tuple[int, ...]
    value: float = 0.0
    why: str = "the published model has no such parameter"
    inert: bool = False


@dataclass(frozen=True)
class Table:
    """All of a family's model: the rules of names, and what no rule of a name can say."""

    rules: tuple[Rule, ...]
    fused: tuple[Fused, ...] = ()
    folds: tuple[Fold, ...] = ()
    fixed: tuple[Fixed, ...] = ()
    left: tuple[str, ...] = ()

    def params(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """The parameters, float32."""
        flat = flatten_paths(to_params(self._parts(tensors), self.rules, left=self.left))
        for fold in self.folds:
            known = {path: np.asarray(flat[path]) for path in (*fold.into, *fold.gone)}
            merged = fold.merge(known)
            flat = {path: leaf for path, leaf in flat.items() if path not in fold.gone}
            flat |= {path: merged[path].astype(np.float32) for path in fold.into}
        return nest(flat | {fixed.path: np.full(fixed.shape, fixed.value, np.float32) for fixed in self.fixed})

    def shapes(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """What `params` gives, as shapes; reads no numbers."""
        flat = flatten_paths(to_shapes(self._parts(tensors), self.rules, left=self.left))
        gone = {path for fold in self.folds for path in fold.gone}
        flat = {path: leaf for path, leaf in flat.items() if path not in gone}
        return nest(flat | {fixed.path: jax.ShapeDtypeStruct(fixed.shape, np.float32) for fixed in self.fixed})

    def tensors(self, params: Any) -> dict[str, np.ndarray]:
        """The published tensors; ValueError for parameters that do something where the published model has none."""
        flat = flatten_paths(params)
        for fixed in self.fixed:
            leaf = flat.pop(fixed.path, None)
            if leaf is None or tuple(leaf.shape) != fixed.shape:
                shape = "missing" if leaf is None else tuple(leaf.shape)
                raise ValueError(f"{fixed.path} is {shape}, not {fixed.shape}; give the parameters of this model")
            if not fixed.inert and np.any(np.asarray(leaf) != fixed.value):
                raise ValueError(f"{fixed.path} is not {fixed.value:g} everywhere, and {fixed.why}")
        for fold in self.folds:
            flat |= {path: nothing() for path, nothing in fold.gone.items()}
        found = to_tensors(nest(flat), self.rules)
        for fused in self.fused:
            for name, parts in fused.each():
                if parts[0] in found:
                    found[name] = np.concatenate([found.pop(part) for part in parts], axis=fused.axis)
        return found

    def _parts(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        names: dict[str, tuple[str, Turn]] = {name: (name, same) for name in tensors}
        for fused in self.fused:
            for name, parts in fused.each():
                if names.pop(name, None) is not None:
                    names |= {part: (name, turn) for part, turn in zip(parts, fused.turns(), strict=True)}
        return Renamed(tensors, names)


def _cut(x: np.ndarray, axis: int, start: int, stop: int | None) -> np.ndarray:
    return x[(slice(None),) * axis + (slice(start, stop),)] if x.ndim > axis else x
