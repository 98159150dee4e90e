"""Primitives that move numbers about, as ONNX nodes: shapes, parts, rows of arrays put together, and sums along axes.

Each takes (graph, inputs, how the outputs look, parameters).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vidlang.serve.export.elementwise import BOOL, cast
from vidlang.serve.export.graph import INT64, Dim, Graph, Value, full, is_one, known

# Never computed at once, though all of it is known: what they give may be large, and what they hold is small, or it is
# the batch.
LAZY = ("broadcast_in_dim", "iota", "dim_as_value")
INT32 = np.dtype(np.int32)


def _broadcast(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    value, axes, (like,) = inputs[0], params["broadcast_dimensions"], likes
    held = [1] * len(like.shape)
    for axis, dim in zip(axes, value.held, strict=True):
        held[axis] = dim
    like = dataclasses.replace(like, held=tuple(held))
    if value.known:
        return [dataclasses.replace(like, array=np.reshape(value.array, held))]
    new = [axis for axis in range(len(held)) if axis not in axes]
    if not new:
        return [dataclasses.replace(like, name=value.name)]
    return [graph.node("Unsqueeze", value, graph.numbers(new), like=like)]


def _iota(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del inputs
    (like,), axis = likes, params["dimension"]
    count, held = like.shape[axis], [1] * len(like.shape)
    held[axis] = count
    if isinstance(count, int):
        array = np.arange(count, dtype=like.dtype).reshape(held)
        return [dataclasses.replace(like, held=tuple(held), array=array)]
    bounds = known(np.int64(0)), _length(graph, count), known(np.int64(1))
    places = graph.node("Range", *bounds, like=full((count,), INT64))
    return [dataclasses.replace(graph.reshaped(cast(graph, places, like.dtype), tuple(held)), shape=like.shape)]


def _length_of(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del inputs
    return [cast(graph, _length(graph, params["dim"]), likes[0].dtype)]


def _length(graph: Graph, dim: Dim) -> Value:
    """How long an axis is, as one number."""
    return graph.node("Squeeze", graph.lengths((dim,)), like=full((), INT64))


def _reshape(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del params
    return [graph.reshaped(inputs[0], likes[0].shape)]


def _squeeze(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    (value,), axes = inputs, [axis % len(inputs[0].shape) for axis in params["dimensions"]]
    held = tuple(dim for axis, dim in enumerate(value.held) if axis not in axes)
    return [graph.node("Squeeze", value, graph.numbers(axes), like=dataclasses.replace(likes[0], held=held))]


def _transpose(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del likes
    return [graph.transposed(inputs[0], params["permutation"])]


def _slice(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del likes
    strides = params["strides"] or (1,) * len(inputs[0].shape)
    return [part(graph, inputs[0], params["start_indices"], params["limit_indices"], strides)]


def part(
    graph: Graph, value: Value, starts: Sequence[Dim], stops: Sequence[Dim], strides: Sequence[int] | None = None
) -> Value:
    """The entries from `starts` to before `stops` along each axis; axes that are wanted whole stay as they are."""
    strides = strides or (1,) * len(value.shape)
    cut = [
        axis
        for axis, (start, stop, step) in enumerate(zip(starts, stops, strides, strict=True))
        if not (str(start) == "0" and str(stop) == str(value.shape[axis]) and step == 1)
    ]
    if not all(isinstance(dim, int) for axis in cut for dim in (starts[axis], stops[axis])):
        raise ValueError(f"a part {starts} to {stops} of {value.shape} depends on the batch; export as StableHLO")
    counts = {axis: -(-(stops[axis] - starts[axis]) // strides[axis]) for axis in cut}
    shape = tuple(counts.get(axis, dim) for axis, dim in enumerate(value.shape))
    axes = [axis for axis in cut if not is_one(value.held[axis]) or is_one(value.shape[axis])]  # broadcast ones wait on
    held = tuple(counts[axis] if axis in axes else dim for axis, dim in enumerate(value.held))
    like = Value(shape, held, value.dtype)
    if not axes:
        return dataclasses.replace(value, shape=shape)
    bounds = tuple([each[axis] for axis in axes] for each in (starts, stops, strides))
    if value.known:
        chosen = [slice(None)] * len(shape)
        for axis, *bound in zip(axes, *bounds, strict=True):
            chosen[axis] = slice(*bound)
        return dataclasses.replace(like, array=np.ascontiguousarray(value.array[tuple(chosen)]))
    begin, end, step = (graph.numbers(each) for each in bounds)
    return graph.node("Slice", value, begin, end, graph.numbers(axes), step, like=like)


def entry(graph: Graph, value: Value, index: int) -> Value:
    """value[index]"""
    starts = (index, *(0,) * (len(value.shape) - 1))
    one = part(graph, value, starts, (index + 1, *value.shape[1:]))
    like = Value(one.shape[1:], one.held[1:], one.dtype)
    if one.known:
        return dataclasses.replace(like, array=one.array.reshape(like.held))
    return graph.node("Squeeze", one, graph.numbers([0]), like=like)


def stack(graph: Graph, values: Sequence[Value], axis: int = 0) -> Value:
    """The values along a new axis."""
    before, after = values[0].shape[:axis], values[0].shape[axis:]
    rows = [graph.reshaped(value, (*before, 1, *after)) for value in values]
    return graph.node("Concat", *rows, like=full((*before, len(values), *after), values[0].dtype), axis=axis)


def _stack(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del likes
    return [stack(graph, inputs, params["axis"])]


def _concatenate(
    graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]
) -> list[Value]:
    return [graph.node("Concat", *map(graph.filled, inputs), like=likes[0], axis=params["dimension"])]


def _split(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del likes
    (value,), axis, start, found = inputs, params["axis"], 0, []
    for size in map(int, params["sizes"]):
        starts, stops = [0] * len(value.shape), list(value.shape)
        starts[axis], stops[axis] = start, start + size
        found.append(part(graph, value, starts, stops))
        start += size
    return found


def _pad(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    (value, filling), sides = inputs, params["padding_config"]
    if any(between for _, _, between in sides):
        raise ValueError("padding between entries is not written as ONNX; export as StableHLO")
    starts = [max(0, -before) for before, _, _ in sides]
    stops = [dim if after >= 0 else dim + after for dim, (_, after, _) in zip(value.shape, sides, strict=True)]
    value = graph.filled(part(graph, value, starts, stops))
    amounts = [max(0, before) for before, _, _ in sides] + [max(0, after) for _, after, _ in sides]
    return [graph.node("Pad", value, graph.numbers(amounts), filling, like=likes[0], mode="constant")]


def _reverse(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    axes = list(params["dimensions"])
    far = [np.iinfo(np.int64).min] * len(axes)
    given = (graph.numbers(each) for each in ([-1] * len(axes), far, axes, [-1] * len(axes)))
    return [graph.node("Slice", graph.filled(inputs[0]), *given, like=likes[0])]


def _tile(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    repeats = [params["reps"][axis] for axis in range(len(likes[0].shape))]
    return [graph.node("Tile", graph.filled(inputs[0]), graph.lengths(tuple(repeats)), like=likes[0])]


def _reduce(op: str) -> Callable[..., list[Value]]:
    def rule(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
        axes = list(params["axes"])
        value = graph.filled(inputs[0], axes)
        held = tuple(dim for axis, dim in enumerate(value.held) if axis not in axes)
        like = dataclasses.replace(likes[0], held=held)
        if value.dtype == BOOL:  # ONNX reduces numbers only
            like = dataclasses.replace(like, dtype=INT32)
            found = graph.node(op, cast(graph, value, INT32), graph.numbers(axes), like=like, keepdims=0)
            return [cast(graph, found, BOOL)]
        return [graph.node(op, value, graph.numbers(axes), like=like, keepdims=0)]

    return rule


def _best(op: str) -> Callable[..., list[Value]]:
    def rule(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
        (axis,), like = params["axes"], dataclasses.replace(likes[0], dtype=np.dtype(np.int64))
        found = graph.node(op, graph.filled(inputs[0]), like=like, axis=axis, keepdims=0)
        return [cast(graph, found, likes[0].dtype)]

    return rule


def _running_sum(
    graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]
) -> list[Value]:
    axis = known(np.int64(params["axis"]))
    return [graph.node("CumSum", graph.filled(inputs[0]), axis, like=likes[0], reverse=int(params["reverse"]))]


RULES: dict[str, Callable[..., list[Value]]] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "slice": _slice,
    "dim_as_value": _length_of,
    "stack": _stack,
    "concatenate": _concatenate,
    "split": _split,
    "pad": _pad,
    "rev": _reverse,
    "tile": _tile,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_and": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "argmax": _best("ArgMax"),
    "argmin": _best("ArgMin"),
    "cumsum": _running_sum,
}
