"""What the rows of a batch count in a loss: which hold anything, what each weighs, and what they are asked for.

`valid_B`, where a batch has it, says which rows hold a clip; `weight_B` weighs the rows of a mixture by its ratios
alone: twice the weights are the same loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> Any:
    """The type that a loss of `x` is computed in: float32, unless `x` is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def valid_rows(batch: Mapping[str, Any], rows: int) -> jax.Array:
    """Which of `rows` rows count."""
    if "valid_B" not in batch:
        return jnp.ones([rows], bool)
    return _of_rows(batch, "valid_B", rows).astype(bool)


def row_weights(batch: Mapping[str, Any], valid_B: jax.Array, dtype: Any) -> jax.Array:
    """What each row weighs; nothing where it is not valid, and 1 where the batch has no weights."""
    if "weight_B" not in batch:
        return valid_B.astype(dtype)
    return jnp.where(valid_B, _of_rows(batch, "weight_B", valid_B.shape[0]).astype(dtype), 0)


def blank(x_Bx: jax.Array, valid_B: jax.Array) -> jax.Array:
    """The array in the type of its loss, with zeros in rows that are not valid.

    Such a row may hold anything, NaN included, and 0 * NaN would reach the gradient.
    """
    return jnp.where(valid_B.reshape(-1, *[1] * (x_Bx.ndim - 1)), x_Bx.astype(wide(x_Bx)), 0)


def mean(value: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean by weight, and 0 where nothing weighs."""
    total = weight.sum()
    return (jnp.where(weight > 0, value, 0) * weight).sum() / jnp.where(total > 0, total, 1)


def need(batch: Mapping[str, Any], name: str, why: str) -> Any:
    """A batch field; ValueError that says why it is needed, and from where it comes."""
    if name not in batch:
        raise ValueError(f"the batch has no {name}, and {why}; it has: {', '.join(batch) or 'nothing'}")
    return batch[name]


def fixed(scalars: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Scalars for the log, through which nothing is learned."""
    return {name: jax.lax.stop_gradient(scalar) for name, scalar in scalars.items()}


def _of_rows(batch: Mapping[str, Any], name: str, rows: int) -> jax.Array:
    array_B = jnp.asarray(batch[name])
    if array_B.shape != (rows,):
        raise ValueError(f"{name} has one number for each of the {rows} rows; found the shape {array_B.shape}")
    return array_B
