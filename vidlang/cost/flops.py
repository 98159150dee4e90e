"""Floating-point operations of a video encoder for one clip, as two papers count them.

Papers count differently, and a number means something only beside its convention. Both formulas are for the forward
pass. What a model really computes is `trace.matmul_flops`, which no formula can forget a part of.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vidlang.cost.stack import StackShape


def adavid(shape: StackShape) -> int:
    """AdaVid's: 24 n d^2 + 4 n^2 d for each joint layer of n tokens and width d, 32 n d^2 + 4 n d (N + T) divided.

    Two operations for each multiply-add of all linear maps and both products of attention; neither the stem nor cls
    nor what follows the stack.
    """
    return sum(
        _linear(shape, tokens, width) + 4 * tokens * shape.keys(tokens) * width
        for tokens, width in zip(shape.tokens, shape.widths, strict=True)
    )


def svitt(shape: StackShape) -> int:
    """SViTT's: two operations for each multiply-add of linear maps, the patch embedding and cls among them.

    Attention counts n * keys * d once a layer, which is a quarter of its two products' operations; no other number
    gives the paper's tables.
    """
    total = 2 * math.prod(shape.grid) * shape.patch * shape.width
    for grid_tokens, width in zip(shape.tokens, shape.widths, strict=True):
        tokens = grid_tokens + shape.global_tokens
        keys = shape.keys(grid_tokens) + int(shape.cls) * shape.attentions
        total += _linear(shape, tokens, width) + tokens * keys * width
    return total


CONVENTIONS: dict[str, Callable[[StackShape], int]] = {"adavid": adavid, "svitt": svitt}


def _linear(shape: StackShape, tokens: int, width: int) -> int:
    """Query, key, value and output of each attention, and both maps of the mlp."""
    return tokens * width * (8 * shape.attentions * width + 4 * shape.hidden(width))
