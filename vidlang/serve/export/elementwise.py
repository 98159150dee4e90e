"""Primitives that work on each number by itself, as ONNX nodes, and those that only say something of an array.

Each takes (graph, inputs, how the outputs look, parameters). What ONNX has no operator for is put together from others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vidlang.serve.export.graph import Graph, Value, known, spread

BOOL = np.dtype(bool)


def apply(graph: Graph, op: str, *inputs: Value, like: Value, **attributes: Any) -> Value:
    """A node that spreads its inputs over each other."""
    return graph.node(op, *inputs, like=dataclasses.replace(like, held=spread(inputs)), **attributes)


def _simple(op: str, **attributes: Any) -> Callable[..., list[Value]]:
    def rule(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
        del params
        return [apply(graph, op, *inputs, like=likes[0], **attributes)]

    return rule


def _logical(op: str, bits: str) -> Callable[..., list[Value]]:
    """Of truth values, or of the bits of whole numbers."""

    def rule(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
        del params
        return [apply(graph, op if inputs[0].dtype == BOOL else bits, *inputs, like=likes[0])]

    return rule


def _chain(*ops: str) -> Callable[..., list[Value]]:
    """One operator after the other."""

    def rule(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
        del params
        for op in ops:
            inputs = [apply(graph, op, *inputs, like=dataclasses.replace(likes[0], dtype=likes[0].dtype))]
        return list(inputs)

    return rule


def _with_one(op: str, arithmetic: str, *, first: bool) -> Callable[..., list[Value]]:
    """1 - op(x), or op(x) - 1, or op(1 + x)."""

    def rule(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
        del params
        one, like = known(np.ones((), likes[0].dtype)), likes[0]
        if arithmetic == "Add":
            return [apply(graph, op, apply(graph, "Add", *inputs, one, like=like), like=like)]
        found = apply(graph, op, *inputs, like=like)
        return [apply(graph, arithmetic, *((one, found) if first else (found, one)), like=like)]

    return rule


def _square(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del params
    return [apply(graph, "Mul", inputs[0], inputs[0], like=likes[0])]


def _power(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    (x,), (like,), power = inputs, likes, params["y"]
    if power in (2, 3):
        square = apply(graph, "Mul", x, x, like=like)
        return [square if power == 2 else apply(graph, "Mul", square, x, like=like)]
    return [apply(graph, "Pow", x, known(np.asarray(power, like.dtype)), like=like)]


def _select(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del params
    which, *cases = inputs
    if which.dtype != BOOL or len(cases) != 2:
        raise ValueError(f"a choice among {len(cases)} by {which.dtype} is not written as ONNX; export as StableHLO")
    return [apply(graph, "Where", which, cases[1], cases[0], like=likes[0])]


def _clamp(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del params
    least, x, most = inputs
    return [apply(graph, "Min", apply(graph, "Max", x, least, like=likes[0]), most, like=likes[0])]


def _cast(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del params
    return [cast(graph, inputs[0], likes[0].dtype)]


def cast(graph: Graph, value: Value, dtype: Any) -> Value:
    """The value as another type of number."""
    dtype = np.dtype(dtype)
    if value.dtype == dtype:
        return value
    if value.known:
        return dataclasses.replace(value, dtype=dtype, array=np.asarray(value.array).astype(dtype))
    return graph.node("Cast", value, like=dataclasses.replace(value, dtype=dtype), to=dtype)


def _same(graph: Graph, inputs: Sequence[Value], likes: Sequence[Value], params: Mapping[str, Any]) -> list[Value]:
    del graph, likes, params
    return list(inputs)


RULES: dict[str, Callable[..., list[Value]]] = {
    "add": _simple("Add"),
    "sub": _simple("Sub"),
    "mul": _simple("Mul"),
    "div": _simple("Div"),
    "max": _simple("Max"),
    "min": _simple("Min"),
    "pow": _simple("Pow"),
    "rem": _simple("Mod", fmod=1),
    "neg": _simple("Neg"),
    "abs": _simple("Abs"),
    "sign": _simple("Sign"),
    "floor": _simple("Floor"),
    "ceil": _simple("Ceil"),
    "exp": _simple("Exp"),
    "log": _simple("Log"),
    "tanh": _simple("Tanh"),
    "sin": _simple("Sin"),
    "cos": _simple("Cos"),
    "erf": _simple("Erf"),
    "sqrt": _simple("Sqrt"),
    "logistic": _simple("Sigmoid"),
    "eq": _simple("Equal"),
    "lt": _simple("Less"),
    "le": _simple("LessOrEqual"),
    "gt": _simple("Greater"),
    "ge": _simple("GreaterOrEqual"),
    "ne": _chain("Equal", "Not"),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "erfc": _with_one("Erf", "Sub", first=True),
    "expm1": _with_one("Exp", "Sub", first=False),
    "log1p": _with_one("Log", "Add", first=False),
    "and": _logical("And", "BitwiseAnd"),
    "or": _logical("Or", "BitwiseOr"),
    "xor": _logical("Xor", "BitwiseXor"),
    "not": _logical("Not", "BitwiseNot"),
    "square": _square,
    "integer_pow": _power,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "copy": _same,
    "stop_gradient": _same,
    "sharding_constraint": _same,
    "optimization_barrier": _same,
    "name": _same,
}
