"""Counts the matrix products of a function by reading its traced program, so that no part of a model is forgotten.

XLA's own count sees the body of a loop once, whatever the number of its rounds, and stacks of layers are loops here.
The trace knows the rounds. Counted are two operations for each multiply-add; what is no product of matrices, some
percent of a transformer, is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Kernels whose inside no trace shows.
OPAQUE = ("pallas_call", "ffi_call", "custom_call", "tpu_custom_call", "ragged_dot", "ragged_dot_general")
# Products of [N, K] and [N, S] matrices for each head in cuDNN's attention: logits and output, and forward again and
# their gradients.
CUDNN_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Two operations for each multiply-add that `function` does with arrays of these shapes, on all devices."""
    return traced_flops(jax.make_jaxpr(function)(*arguments))


def traced_flops(program: Any) -> int:
    """The same of a function that is traced already (a closed jaxpr).

    Nothing is computed. Of branches the dearest counts, so widths that are drawn anew in each step cost what the widest
    draw costs. ValueError where a product is inside something that cannot be counted.
    """
    return _count(program.jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_operations(equation) for equation in jaxpr.eqns)


def _operations(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name in CUDNN_PRODUCTS:
        return _cudnn_attention(equation)
    if name == "scan":
        return int(params["length"]) * _count(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    if name == "shard_map":
        ways = math.prod(params["mesh"].shape[axis] for axis in params["manual_axes"])
        return ways * sum(map(_count, _inner(params)))
    if name in OPAQUE:
        raise ValueError(
            f"{name} hides its operations, so they cannot be counted; set the transformer's attention to 'reference' "
            "to count them"
        )
    inside = sum(map(_count, _inner(params)))
    if name == "while" and inside:
        raise ValueError(
            "matrix products in a loop whose number of rounds the program finds out itself cannot be counted; write "
            "the loop as jax.lax.scan"
        )
    return inside


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item.jaxpr


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // features)


def _cudnn_attention(equation: Any) -> int:
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    batch, queries, heads, size = query
    return CUDNN_PRODUCTS[equation.primitive.name] * 2 * batch * heads * queries * key[1] * size
