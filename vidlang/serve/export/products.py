"""Products of matrices and convolutions as ONNX nodes. Each rule takes (graph, inputs, outputs' looks, parameters)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vidlang.serve.export.elementwise import cast
from vidlang.serve.export.graph import Dim, Graph, Shape, Value, full


def _dot(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    """Any product over some axes, as one of matrices: shared axes, rows, what is summed over, columns."""
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    (like,) = likes
    left, right = (graph.filled(cast(graph, value, like.dtype)) for value in inputs)
    left_free = [a for a in range(len(left.shape)) if a not in (*left_sum, *left_batch)]
    right_free = [a for a in range(len(right.shape)) if a not in (*right_sum, *right_batch)]
    shared = tuple(left.shape[axis] for axis in left_batch)
    rows, columns = (tuple(x.shape[a] for a in free) for x, free in ((left, left_free), (right, right_free)))
    summed = _product(left.shape[axis] for axis in left_sum)
    # A matrix on the right meets as many rows as there are, in whatever axes.
    flat = rows if rows and not shared else (_product(rows),)
    left = graph.transposed(left, [*left_batch, *left_free, *left_sum])
    left = graph.reshaped(left, (*shared, *flat, summed))
    right = graph.transposed(right, [*right_batch, *right_sum, *right_free])
    right = graph.reshaped(right, (*shared, summed, _product(columns)))
    found = graph.node("MatMul", left, right, like=full((*shared, *flat, _product(columns)), like.dtype))
    return [graph.reshaped(found, like.shape)]


def _convolution(
    graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]
) -> list[Value]:
    """ONNX knows one order of axes: batch, channels, then places."""
    numbers, (like,) = params["dimension_numbers"], likes
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise ValueError("a transposed convolution is not written as ONNX; export as StableHLO")
    x = graph.transposed(graph.filled(inputs[0]), numbers.lhs_spec)
    kernel = graph.transposed(graph.filled(inputs[1]), numbers.rhs_spec)
    moved: Shape = tuple(like.shape[axis] for axis in numbers.out_spec)
    padding = params["padding"]
    found = graph.node(
        "Conv",
        x,
        kernel,
        like=full(moved, like.dtype),
        strides=list(params["window_strides"]),
        pads=[before for before, _ in padding] + [after for _, after in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return [graph.transposed(found, np.argsort(numbers.out_spec).tolist())]


def _product(dims: Any) -> Dim:
    return math.prod(dims)


RULES: dict[str, Callable[..., list[Value]]] = {"dot_general": _dot, "conv_general_dilated": _convolution}
