"""Parameters of a model: how many there are, what they weigh, and how many a width touches."""

from __future__ import annotations

from typing import Any

import jax

from vidlang.cost.stack import StackShape


def count(params: Any) -> int:
    """Numbers in a tree of parameters, which may be abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def size_bytes(params: Any) -> int:
    """Bytes of a tree of parameters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def touched(shape: StackShape) -> int:
    """Parameters of the stack's layers that are used at their widths: matrices, offsets, norms and gates.

    Adapters, low-rank updates, scales of branches and tables of relative positions, where a model has them, are not
    among these.
    """
    return sum(_layer(shape, width) for width in shape.widths)


def _layer(shape: StackShape, width: int) -> int:
    hidden = shape.hidden(width)
    attention = shape.attentions * (4 * width * width + 4 * width)
    mlp = 2 * width * hidden + hidden + width
    norms = (shape.attentions + 1) * 2 * width
    gate = int(shape.layout == "factorized")
    return attention + mlp + norms + gate
