"""An ONNX graph in the making, in plain Python: nodes, and numbers that are known already.

Broadcasting waits: a value may hold 1 entry along an axis where the program has many, for most ONNX operators spread it
themselves. Whoever needs all of it asks for `filled`. One axis length may be open, the batch; axes may be multiples
of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# An axis length: a number, or a symbolic multiple of the batch.
Dim = Any
Shape = tuple[Dim, ...]

BATCH = "b"
INT64 = np.dtype(np.int64)


@dataclass(frozen=True, eq=False)
class Value:
    """One array of the program: its shape, the shape of what is there (1 where that is broadcast), and its number type.

    It is the output `name` of a node, or an `array` that is known now.
    """

    shape: Shape
    held: Shape
    dtype: Any
    name: str = ""
    array: Any = None

    @property
    def known(self) -> bool:
        """Whether its numbers do not depend on the inputs."""
        return self.array is not None


@dataclass(frozen=True)
class Node:
    """An operator of ONNX with the names of its inputs and outputs."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class Graph:
    """What has been written down so far. inputs and outputs: what the finished graph takes and gives."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    _names: dict[int, tuple[str, Any]] = field(default_factory=dict)
    _kept: dict[Any, Value] = field(default_factory=dict)

    def input(self, name: str, shape: Shape, dtype: Any) -> Value:
        """Something that the graph is called with."""
        value = Value(shape, shape, np.dtype(dtype), name)
        self.inputs.append(value)
        return value

    def name(self, value: Value) -> str:
        """What nodes call a value; known numbers become constants of the graph when a node first asks for them."""
        if not value.known:
            return value.name
        if id(value.array) not in self._names:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = np.asarray(value.array)
            self._names[id(value.array)] = name, value.array  # kept alive, so that its id stays its own
        return self._names[id(value.array)][0]

    def node(self, op: str, *inputs: Value, like: Value, count: int = 1, **attributes: Any) -> Value:
        """The first output of a new node, which is shaped as `like` says."""
        outputs = tuple(f"{op.lower()}_{len(self.nodes)}{f'_{i}' if i else ''}" for i in range(count))
        self.nodes.append(Node(op, tuple(self.name(each) for each in inputs), outputs, attributes))
        return dataclasses.replace(like, name=outputs[0], array=None)

    def last(self, output: int, like: Value) -> Value:
        """Another output of the node that was added last."""
        return dataclasses.replace(like, name=self.nodes[-1].outputs[output], array=None)

    def numbers(self, values: Sequence[int]) -> Value:
        """Whole numbers as ONNX takes its settings, int64 [n]."""
        key = ("numbers", *values)
        if key not in self._kept:
            self._kept[key] = known(np.asarray(values, np.int64).reshape(-1))
        return self._kept[key]

    def lengths(self, shape: Shape) -> Value:
        """A shape as int64 [n], computed from the batch where it depends on it."""
        if all(isinstance(dim, int) for dim in shape):
            return self.numbers(shape)
        key = ("lengths", *map(str, shape))
        if key not in self._kept:
            parts = [self.numbers([dim]) if isinstance(dim, int) else self._multiple(batches(dim)) for dim in shape]
            self._kept[key] = (
                parts[0] if len(parts) == 1 else self.node("Concat", *parts, like=_int64(len(shape)), axis=0)
            )
        return self._kept[key]

    def filled(self, value: Value, axes: Sequence[int] | None = None) -> Value:
        """The value with all its entries there; given axes, only where one of them waits for that."""
        looked_at = range(len(value.shape)) if axes is None else axes
        if all(_same(value.held[axis], value.shape[axis]) for axis in looked_at):
            return value
        if value.known and all(isinstance(dim, int) for dim in value.shape):
            return known(np.broadcast_to(value.array, value.shape))
        return self.node("Expand", value, self.lengths(value.shape), like=full(value.shape, value.dtype))

    def reshaped(self, value: Value, shape: Shape) -> Value:
        """The same entries in the same order in another shape."""
        value = self.filled(value)
        if len(shape) == len(value.shape) and all(map(_same, shape, value.shape)):
            return value
        static = all(isinstance(dim, int) for dim in shape)
        if value.known and static:
            return known(np.reshape(value.array, shape))
        opened = [dim for dim in shape if not isinstance(dim, int)]
        if len(opened) <= 1:
            wanted = self.numbers([dim if isinstance(dim, int) else -1 for dim in shape])
        else:
            wanted = self.lengths(shape)
        return self.node("Reshape", value, wanted, like=full(shape, value.dtype))

    def transposed(self, value: Value, axes: Sequence[int]) -> Value:
        """The value with its axes in this order."""
        axes = list(axes)
        if axes == sorted(axes):
            return value
        if value.known:
            array = np.ascontiguousarray(np.transpose(value.array, axes))
            return dataclasses.replace(value, shape=_at(value.shape, axes), held=_at(value.held, axes), array=array)
        like = Value(_at(value.shape, axes), _at(value.held, axes), value.dtype)
        return self.node("Transpose", value, like=like, perm=axes)

    def pruned(self) -> Graph:
        """The graph without what no output depends on."""
        wanted = {self.name(value) for value in self.outputs}
        nodes = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                nodes.append(node)
        constants = {name: array for name, array in self.constants.items() if name in wanted}
        return Graph(self.inputs, self.outputs, nodes[::-1], constants)

    def _multiple(self, count: int) -> Value:
        """`count` times the batch, int64 [1]."""
        key = ("multiple", count)
        if key in self._kept:
            return self._kept[key]
        if count == 1:
            first = self.inputs[0]
            shape = self.node("Shape", first, like=_int64(len(first.shape)))
            found = self.node("Gather", shape, self.numbers([0]), like=_int64(1), axis=0)
        else:
            found = self.node("Mul", self._multiple(1), self.numbers([count]), like=_int64(1))
        self._kept[key] = found
        return found


def full(shape: Shape, dtype: Any) -> Value:
    """How a value looks whose entries are all there."""
    return Value(tuple(shape), tuple(shape), dtype)


def known(array: Any) -> Value:
    """Numbers as a value."""
    return Value(tuple(array.shape), tuple(array.shape), array.dtype, array=array)


def batches(dim: Dim) -> int:
    """How many times the batch an open axis is."""
    found = re.fullmatch(rf"(?:(\d+)\*)?{BATCH}", str(dim))
    if found is None:
        raise ValueError(
            f"an axis of {dim} entries depends on the batch {BATCH!r} in a way that ONNX files do not hold"
        )
    return int(found[1] or 1)


def spread(values: Sequence[Value]) -> Shape:
    """The shape that the held entries of several values have together."""
    rank = max(len(value.held) for value in values)
    shapes = [(1,) * (rank - len(value.held)) + value.held for value in values]
    return tuple(next((dim for dim in dims if not is_one(dim)), 1) for dims in zip(*shapes, strict=True))


def is_one(dim: Dim) -> bool:
    """Whether an axis has one entry, whatever the batch."""
    return isinstance(dim, int) and dim == 1


def _same(one: Dim, other: Dim) -> bool:
    # Symbolic lengths are compared as they are written: what is not known to be equal is different.
    return one == other if isinstance(one, int) and isinstance(other, int) else str(one) == str(other)


def _at(items: Shape, axes: Sequence[int]) -> Shape:
    return tuple(items[axis] for axis in axes)


def _int64(count: int) -> Value:
    return full((count,), INT64)
