"""A choice between functions at run time that pays only for the one chosen, backward as well as forward.

The derivative of a plain `lax.switch` keeps what any branch would need, filled with zeros for those that did not run: a
layer of four widths would so write and hold two and a half times what the widest needs, however narrow it is. Here
the backward pass is a switch of its own, whose branch computes what it needs again from the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def switch(index: jax.Array, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`branches[index](*operands)`, as lax.switch. Branches may not use arrays that are no operands."""
    leaves, tree = jax.tree.flatten(operands)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

    def on_floats(branch: Callable[..., Any]) -> Callable[..., Any]:
        """The branch as a function of (floats, others): only the former have derivatives."""

        def call(floats: list[Any], others: list[Any]) -> Any:
            floats, others = list(floats), list(others)
            whole = [(floats if real else others).pop(0) for real in is_float]
            return branch(*jax.tree.unflatten(tree, whole))

        return call

    calls = [on_floats(branch) for branch in branches]

    @jax.custom_vjp
    def run(index: jax.Array, floats: list[Any], others: list[Any]) -> Any:
        return jax.lax.switch(index, calls, floats, others)

    def forward(index: jax.Array, floats: list[Any], others: list[Any]) -> tuple[Any, Any]:
        return run(index, floats, others), (index, floats, others)

    def backward(kept: Any, gradient: Any) -> tuple[None, list[Any], None]:
        index, floats, others = kept

        def pull(call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda floats, others, gradient: jax.vjp(lambda floats: call(floats, others), floats)[1](gradient)[0]

        return None, jax.lax.switch(index, [pull(call) for call in calls], floats, others, gradient), None

    run.defvjp(forward, backward)
    floats = [leaf for leaf, real in zip(leaves, is_float, strict=True) if real]
    others = [leaf for leaf, real in zip(leaves, is_float, strict=True) if not real]
    return run(index, floats, others)
