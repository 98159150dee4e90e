"""Averages of video tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlang.ops.tubelets import Size3


def mean_over_time(tokens_BMD: jax.Array, kept_BM: jax.Array, grid: Size3) -> jax.Array:
    """[B, rows * columns, D]: for each place of a frame the mean of its tokens over time, of those that are there.

    kept_BM: which tokens of the grid (time, rows, columns) these are. A place of which none is left, which takes many
    masked ones, gets the mean of the whole clip: it says nothing of its own, and the number of tokens stays.
    """
    times, places = grid[0], grid[1] * grid[2]
    batch, tokens, width = tokens_BMD.shape
    if tokens == times * places:
        return tokens_BMD.reshape(batch, times, places, width).mean(axis=1)
    at_BMP = jax.nn.one_hot(kept_BM % places, places, dtype=tokens_BMD.dtype)
    sums_BPD = jnp.einsum("BMP,BMD->BPD", at_BMP, tokens_BMD, preferred_element_type=jnp.float32)
    count_BP1 = at_BMP.astype(jnp.float32).sum(axis=1)[..., None]
    whole_B1D = tokens_BMD.astype(jnp.float32).mean(axis=1, keepdims=True)
    return jnp.where(count_BP1 > 0, sums_BPD / jnp.maximum(count_BP1, 1), whole_B1D).astype(tokens_BMD.dtype)
