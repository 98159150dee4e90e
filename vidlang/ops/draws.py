"""What each row of a batch draws for itself: the same in whatever part of the batch the row is worked on."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def row_keys(key: jax.Array, rows_B: jax.Array | None, batch: int) -> jax.Array:
    """A key for each of `batch` rows. `rows_B` says which rows of the whole batch they are; None means 0 .. batch-1."""
    if rows_B is None:
        rows_B = jnp.arange(batch)
    if rows_B.shape != (batch,):
        raise ValueError(f"{batch} rows come with the numbers of as many rows; found the shape {rows_B.shape}")
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)
