"""Primitives that look up, as ONNX nodes: gathers, parts that begin where the data says, the largest, and sorting.

Each takes (graph, inputs, how the outputs look, parameters).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from vidlang.serve.export.elementwise import apply, cast
from vidlang.serve.export.graph import INT64, Dim, Graph, Value, full, known
from vidlang.serve.export.shapes import INT32, part


def _gather(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    numbers, sizes, (value, index), (like,) = params["dimension_numbers"], params["slice_sizes"], inputs, likes
    index = graph.filled(index)
    if index.known and all(dim == 1 for dim in index.shape[:-1]) and not numbers.operand_batching_dims:
        return [_fixed(graph, value, index, numbers, sizes, like)]
    if GatherScatterMode.from_any(params["mode"]) == GatherScatterMode.FILL_OR_DROP:
        return [_filling(graph, value, index, numbers, sizes, like, params["fill_value"])]
    return [_rows(graph, value, _clipped(graph, value, index, numbers, sizes), numbers, sizes, like)]


def _fixed(graph: Graph, value: Value, index: Value, numbers: Any, sizes: Sequence[Dim], like: Value) -> Value:
    """One part that is known where."""
    starts: list[Dim] = [0] * len(value.shape)
    for axis, start in zip(numbers.start_index_map, np.reshape(index.array, -1).tolist(), strict=True):
        if start and not 0 < start <= _room(value.shape[axis], sizes[axis]):
            raise ValueError(f"entry {start} of {value.shape[axis]} does not exist, which ONNX files do not hold")
        starts[axis] = start
    found = part(graph, value, starts, [start + size for start, size in zip(starts, sizes, strict=True)])
    return graph.reshaped(found, like.shape)


def _clipped(graph: Graph, value: Value, index: Value, numbers: Any, sizes: Sequence[Dim]) -> Value:
    """The indices, moved to the nearest that exist."""
    room = [_room(value.shape[axis], sizes[axis]) for axis in numbers.start_index_map]
    most = known(np.asarray(room, index.dtype).reshape((1,) * (len(index.shape) - 1) + (-1,)))
    index = apply(graph, "Max", index, known(np.zeros((), index.dtype)), like=index)
    return apply(graph, "Min", index, most, like=index)


def _room(dim: Dim, size: Dim) -> int:
    """The last place where a part of this size can begin."""
    if str(dim) == str(size):
        return 0
    if not isinstance(dim, int):
        raise ValueError("the model looks up rows of its batch, which has any number of them; export as StableHLO")
    return dim - int(size)


def _filling(
    graph: Graph, value: Value, index: Value, numbers: Any, sizes: Sequence[Dim], like: Value, filling: Any
) -> Value:
    """Where an index does not exist there is NaN, or for whole numbers what JAX has for that."""
    clipped = _clipped(graph, value, index, numbers, sizes)
    found = _rows(graph, value, clipped, numbers, sizes, like)
    same = apply(graph, "Equal", index, clipped, like=full(index.shape, np.bool_))
    right = graph.node(
        "ReduceMin",
        cast(graph, same, INT32),
        graph.numbers([len(index.shape) - 1]),
        like=full(index.shape[:-1], INT32),
        keepdims=0,
    )
    own = iter(index.shape[:-1])
    shape = tuple(1 if axis in numbers.offset_dims else next(own) for axis in range(len(like.shape)))
    right = dataclasses.replace(graph.reshaped(cast(graph, right, np.bool_), shape), shape=like.shape)
    if filling is None:
        dtype = np.dtype(like.dtype)
        filling = np.nan if dtype.kind == "f" else np.iinfo(dtype).max if dtype.kind == "u" else np.iinfo(dtype).min
    return apply(graph, "Where", right, found, known(np.asarray(filling, like.dtype)), like=like)


def _rows(graph: Graph, value: Value, index: Value, numbers: Any, sizes: Sequence[Dim], like: Value) -> Value:
    """The rows that indices mean, each a whole part of the array."""
    shared, looked_up = list(numbers.operand_batching_dims), list(numbers.start_index_map)
    rest = [axis for axis in range(len(value.shape)) if axis not in (*shared, *looked_up)]
    whole = all(str(sizes[axis]) == str(value.shape[axis]) for axis in rest)
    if not whole or any(sizes[axis] != 1 for axis in looked_up):
        raise ValueError(f"a lookup of parts {sizes} of {value.shape} is not written as ONNX; export as StableHLO")
    value = graph.transposed(graph.filled(value), [*shared, *looked_up, *rest])
    index_axes = list(numbers.start_indices_batching_dims)
    others = [axis for axis in range(len(index.shape) - 1) if axis not in index_axes]
    index = graph.transposed(cast(graph, index, INT64), [*index_axes, *others, len(index.shape) - 1])
    left = tuple(index.shape[:-1]) + tuple(value.shape[len(shared) + len(looked_up) :])
    if not shared and len(looked_up) == 1:
        found = graph.node(
            "Gather", value, graph.reshaped(index, index.shape[:-1]), like=full(left, value.dtype), axis=0
        )
    else:
        found = graph.node("GatherND", value, index, like=full(left, value.dtype), batch_dims=len(shared))
    return _ordered(graph, found, [*index_axes, *others], looked_up, rest, numbers, like)


def _ordered(
    graph: Graph, found: Value, index_axes: list[int], looked_up: list[int], rest: list[int], numbers: Any, like: Value
) -> Value:
    """Axes of the indices and of the parts where the program has them; those of length 1 come back."""
    collapsed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    offsets = [axis for axis in sorted([*looked_up, *rest]) if axis not in collapsed]
    batch_places = [axis for axis in range(len(like.shape)) if axis not in numbers.offset_dims]
    source: dict[int, int] = {}
    for place, axis in zip(batch_places, range(len(index_axes)), strict=True):
        source[place] = index_axes.index(axis)
    for place, axis in zip(numbers.offset_dims, offsets, strict=True):
        if axis in rest:
            source[place] = len(index_axes) + rest.index(axis)
    return graph.reshaped(graph.transposed(found, [source[place] for place in sorted(source)]), like.shape)


def _dynamic_slice(
    graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]
) -> list[Value]:
    value, *starts = inputs
    sizes = params["slice_sizes"]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if str(size) == str(value.shape[axis]):
            continue
        if start.known:
            first, stops, wanted = [0] * len(value.shape), list(value.shape), max(int(start.array), 0)
            first[axis] = min(wanted, _room(value.shape[axis], size)) if wanted else 0
            stops[axis] = first[axis] + size
            value = part(graph, value, first, stops)
            continue
        value, most = graph.filled(value, [axis]), graph.numbers([_room(value.shape[axis], size)])
        one = graph.reshaped(cast(graph, start, INT64), (1,))
        one = apply(graph, "Min", apply(graph, "Max", one, graph.numbers([0]), like=one), most, like=one)
        stop = apply(graph, "Add", one, graph.numbers([size]), like=one)
        shape, held = (tuple(size if a == axis else dim for a, dim in enumerate(d)) for d in (value.shape, value.held))
        value = graph.node("Slice", value, one, stop, graph.numbers([axis]), like=Value(shape, held, value.dtype))
    return [value]


def _top(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    axis = params.get("axis", len(inputs[0].shape) - 1)
    return _ranked(graph, inputs[0], likes, params["k"], axis, largest=1)


def _sort(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    axis, count = params["dimension"], inputs[0].shape[params["dimension"]]
    if params["num_keys"] != 1:
        raise ValueError(f"sorting by {params['num_keys']} keys is not written as ONNX; export as StableHLO")
    like = dataclasses.replace(likes[0], dtype=INT64)
    found, order = _ranked(graph, inputs[0], [likes[0], like], count, axis, largest=0)
    return [
        found,
        *(
            graph.node("GatherElements", graph.filled(x), order, like=like, axis=axis)
            for x, like in zip(inputs[1:], likes[1:], strict=True)
        ),
    ]


def _ranked(graph: Graph, value: Value, likes: Sequence[Value], count: int, axis: int, *, largest: int) -> list[Value]:
    """(the first `count` by size, their places); the earlier one of equals comes first."""
    value, settings = graph.filled(value), {"axis": axis, "largest": largest, "sorted": 1}
    found = graph.node("TopK", value, graph.numbers([count]), like=likes[0], count=2, **settings)
    return [found, cast(graph, graph.last(1, dataclasses.replace(likes[1], dtype=INT64)), likes[1].dtype)]


RULES: dict[str, Callable[..., list[Value]]] = {
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "top_k": _top,
    "sort": _sort,
}
