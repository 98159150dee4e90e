"""A JAX program as an ONNX graph, one primitive after another.

What depends on the inputs becomes nodes; all else is computed here and now, so that parameters come out sliced and
shaped as the nodes want them. Functions are inlined and loops unrolled. A primitive that no table knows is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vidlang.serve.export import elementwise, indexing, products, shapes
from vidlang.serve.export.fusion import fused
from vidlang.serve.export.graph import BATCH, Graph, Value, full, known, spread

# primitive -> function of (graph, its inputs, how its outputs look, its parameters), which gives its outputs.
Rule = Callable[[Graph, Sequence[Value], Sequence[Value], Mapping[str, Any]], Sequence[Value]]
RULES: dict[str, Rule] = {**elementwise.RULES, **shapes.RULES, **indexing.RULES, **products.RULES}
# What holds a function, and under which of its parameters.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
# Whose parts are computed, where they are known, and not the whole.
LATER = {*CALLS, *shapes.LAZY} - {"jit", "pjit"}


def convert(function: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct], output: str) -> Graph:
    """The graph of `function(**inputs)`, one array. The inputs are given without the batch, which is in front of each.

    Numbers that the function holds, as a model's parameters, become constants of the graph.
    """
    (batch,) = jax_export.symbolic_shape(BATCH)
    arguments = {name: jax.ShapeDtypeStruct((batch, *like.shape), like.dtype) for name, like in inputs.items()}
    closed = jax.make_jaxpr(lambda arguments: function(**arguments))(arguments)
    graph = Graph()
    # Dictionaries go into a program in the order of their sorted keys.
    values = {name: graph.input(name, arguments[name].shape, arguments[name].dtype) for name in sorted(arguments)}
    (found,) = _inline(graph, closed, list(values.values()))
    graph.inputs = [values[name] for name in inputs]
    found = graph.filled(found)
    graph.outputs.append(graph.node("Identity", found, like=found))
    graph = fused(graph.pruned())
    return _renamed_output(graph, output)


def _inline(graph: Graph, closed: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    return _run(graph, closed.jaxpr, [known(_host(const)) for const in closed.consts], inputs)


def _run(graph: Graph, jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    """Writes down a program and returns its outputs."""
    environment: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, Literal):
            like: Any = atom.aval
            return known(np.asarray(atom.val, like.dtype))
        return environment[atom]

    for equation in jaxpr.eqns:
        outputs = _write(graph, equation, [read(atom) for atom in equation.invars])
        for var, value in zip(equation.outvars, outputs, strict=True):
            environment[var] = value
    return [read(atom) for atom in jaxpr.outvars]


def _write(graph: Graph, equation: Any, inputs: list[Value]) -> Sequence[Value]:
    """The outputs of one equation: known now, of a function, of a loop, or of a rule."""
    name, params = equation.primitive.name, equation.params
    likes = [full(var.aval.shape, var.aval.dtype) for var in equation.outvars]
    if all(value.known for value in inputs) and name not in LATER:
        if all(isinstance(dim, int) for value in [*inputs, *likes] for dim in value.shape):
            return _now(equation, [graph.filled(value) for value in inputs])
        if name in elementwise.RULES:
            return _now(equation, [_spread(value, spread(inputs)) for value in inputs], likes)
    if name in CALLS:
        inner = params[CALLS[name]]
        return _inline(graph, inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), inputs)
    if name == "scan":
        return _unroll(graph, params, inputs)
    if name not in RULES:
        raise ValueError(
            f"the model uses {name!r}, which this converter does not write as ONNX; export it as StableHLO, or with "
            "other dials and settings"
        )
    return RULES[name](graph, inputs, likes, params)


def _now(equation: Any, inputs: Sequence[Value], likes: Sequence[Value] | None = None) -> list[Value]:
    """The outputs of an equation whose inputs are known; of an elementwise one, as broadcast to `likes`."""
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*(value.array for value in inputs), **equation.params)
    arrays = [_host(array) for array in (found if equation.primitive.multiple_results else [found])]
    if likes is None:
        return [known(array) for array in arrays]
    return [dataclasses.replace(like, held=a.shape, array=a) for like, a in zip(likes, arrays, strict=True)]


def _unroll(graph: Graph, params: Mapping[str, Any], inputs: Sequence[Value]) -> list[Value]:
    """A loop as its steps one after the other."""
    consts, carries = params["num_consts"], params["num_carry"]
    fixed, carry, stacked = inputs[:consts], list(inputs[consts : consts + carries]), inputs[consts + carries :]
    steps = range(params["length"])
    made: list[list[Value]] = []
    for step in reversed(steps) if params["reverse"] else steps:
        outputs = _inline(graph, params["jaxpr"], [*fixed, *carry, *(shapes.entry(graph, x, step) for x in stacked)])
        carry = outputs[:carries]
        made.append(outputs[carries:])
    if params["reverse"]:
        made.reverse()
    return carry + [shapes.stack(graph, column) for column in zip(*made, strict=True)]


def _spread(value: Value, shape: tuple[int, ...]) -> Value:
    return known(np.broadcast_to(value.array, shape))


def _host(array: Any) -> Any:
    """An array in numpy; keys of random numbers stay what they are."""
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    return np.asarray(array)


def _renamed_output(graph: Graph, name: str) -> Graph:
    last = graph.nodes.pop()
    graph.nodes.append(dataclasses.replace(last, outputs=(name,)))
    graph.outputs = [dataclasses.replace(graph.outputs[0], name=name)]
    return graph
