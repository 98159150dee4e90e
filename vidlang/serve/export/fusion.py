"""Several nodes as the one that ONNX has for them: softmax, layer normalisation, and a GELU as runtimes know it.

What is found is replaced where its last node stands; what nobody needs any more is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vidlang.serve.export.graph import Graph, Node


def fused(graph: Graph) -> Graph:
    """The graph with fewer nodes that computes the same."""
    found = Graph(graph.inputs, graph.outputs, [], dict(graph.constants))
    finder = _Finder(found, {output: node for node in graph.nodes for output in node.outputs})
    for node in graph.nodes:
        found.nodes += finder.replaced(node)
    return found.pruned()


class _Finder:
    """Looks from a node back at what it is made of."""

    def __init__(self, graph: Graph, made_by: dict[str, Node]) -> None:
        self.graph, self.made_by = graph, made_by
        self.patterns: dict[str, Callable[[Node], list[Node] | None]] = {
            "Div": self.softmax,
            "Add": self.layer_norm,
            "Sub": self.one_minus_erf,
        }

    def replaced(self, node: Node) -> list[Node]:
        """What stands in the place of a node, itself if nothing better is known."""
        pattern = self.patterns.get(node.op)
        return [node] if pattern is None else pattern(node) or [node]

    def softmax(self, node: Node) -> list[Node] | None:
        """exp(x - max x) / sum of that"""
        top, total = node.inputs
        exp, summed = self.inputs(top, "Exp"), self.reduced(total, "ReduceSum")
        if exp is None or summed is None or summed[0] != top or summed[1].size != 1:
            return None
        centred = self.inputs(exp[0], "Sub")
        if centred is None or (moved := self.inputs(centred[1], "Unsqueeze")) is None:
            return None
        most, floor = moved[0], self.inputs(moved[0], "Max")
        if floor is not None and (least := self.constant(floor[0])) is not None and np.all(least == -np.inf):
            most = floor[1]
        largest = self.inputs(most, "ReduceMax")
        wanted = (centred[0], summed[1].tolist(), summed[1].tolist())
        if largest is None or (largest[0], *map(self.numbers, (largest[1], moved[1]))) != wanted:
            return None
        return [Node("Softmax", centred[:1], node.outputs, {"axis": int(summed[1][0])})]

    def layer_norm(self, node: Node) -> list[Node] | None:
        """(x - mean x) / sqrt(mean of its square + epsilon) * scale + bias, over the last axis"""
        scaled, bias = self.inputs(node.inputs[0], "Mul"), self.constant(node.inputs[1])
        if scaled is None or bias is None or (scale := self.constant(scaled[1])) is None:
            return None
        normal = self.inputs(scaled[0], "Mul")
        root = normal and self.inputs(normal[1], "Reciprocal")
        inside = root and self.inputs(root[0], "Sqrt")
        sums = inside and self.inputs(inside[0], "Add")
        if not normal or not sums or (epsilon := self.constant(sums[1])) is None or epsilon.size != 1:
            return None
        size = scale.shape[-1] if scale.ndim else 0
        axis = scale.ndim - 1
        centred, square = self.inputs(normal[0], "Sub"), self.mean(sums[0], axis, size)
        if centred is None or square is None or self.inputs(square, "Mul") != (normal[0], normal[0]):
            return None
        if self.mean(centred[1], axis, size) != centred[0] or not scale.size == bias.size == size:
            return None
        settings = {"axis": -1, "epsilon": float(epsilon.reshape(()))}
        flat = self.flat(scaled[1]), self.flat(node.inputs[1])
        return [Node("LayerNormalization", (centred[0], *flat), node.outputs, settings)]

    def one_minus_erf(self, node: Node) -> list[Node] | None:
        """1 - erf(-x / sqrt 2) as 1 + erf(x / sqrt 2), which runtimes make a GELU of"""
        one, erf = self.constant(node.inputs[0]), self.inputs(node.inputs[1], "Erf")
        product = erf and self.inputs(erf[0], "Mul")
        negative = product and self.inputs(product[0], "Neg")
        if one is None or not np.all(one == 1) or not product or not negative:
            return None
        factor = self.constant(product[1])
        if (
            factor is None
            or factor.size != 1
            or not math.isclose(float(factor.reshape(())), math.sqrt(0.5), rel_tol=1e-6)
        ):
            return None
        root = "square_root_of_two"
        self.graph.constants[root] = np.asarray(math.sqrt(2.0), factor.dtype)
        divided, flipped = (f"{node.outputs[0]}_{name}" for name in ("divided", "erf"))
        return [
            Node("Div", (negative[0], root), (divided,), {}),
            Node("Erf", (divided,), (flipped,), {}),
            Node("Add", (flipped, node.inputs[0]), node.outputs, {}),
        ]

    def inputs(self, name: str, op: str) -> tuple[str, ...] | None:
        """What a value is made of, if by this operator."""
        node = self.made_by.get(name)
        return None if node is None or node.op != op else node.inputs

    def constant(self, name: str) -> np.ndarray | None:
        """The numbers of a constant."""
        return self.graph.constants.get(name)

    def numbers(self, name: str) -> list[int] | None:
        """The whole numbers of a constant."""
        found = self.constant(name)
        return None if found is None else found.tolist()

    def reduced(self, name: str, op: str) -> tuple[str, np.ndarray] | None:
        """(what was reduced, along which axes), where these were put back with length 1."""
        kept = self.inputs(name, "Unsqueeze")
        inner = kept and self.inputs(kept[0], op)
        if not kept or not inner or (axes := self.constant(kept[1])) is None:
            return None
        return (inner[0], axes) if self.numbers(inner[1]) == axes.tolist() else None

    def mean(self, name: str, axis: int, size: int) -> str | None:
        """What this is the mean of, along an axis of this size."""
        divided = self.inputs(name, "Div")
        summed = divided and self.reduced(divided[0], "ReduceSum")
        if not divided or not summed or (count := self.constant(divided[1])) is None:
            return None
        return summed[0] if summed[1].tolist() == [axis] and np.all(count == size) else None

    def flat(self, name: str) -> str:
        """A constant in one axis."""
        array = self.graph.constants[name]
        if array.ndim == 1:
            return name
        self.graph.constants[f"{name}_flat"] = array.reshape(-1)
        return f"{name}_flat"
