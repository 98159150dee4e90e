"""Token pruning (SViTT): after a layer, the tokens that cls attends to most go on, and the rest is gone for good."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain


def kept_count(tokens: int, rate: float) -> int:
    """ceil(rate * tokens); what binary fractions add to a product that should be whole does not count."""
    return max(1, math.ceil(round(rate * tokens, 6)))


def keep_best(x_BND: jax.Array, score_BN: jax.Array, keep: int, *, globals: int = 0) -> tuple[jax.Array, jax.Array]:
    """The `keep` tokens with the highest scores, in their order, behind the global ones: (tokens, indices kept_BM).

    Scores and indices count the tokens after the `globals` in front, which always stay.
    """
    _, best_BM = jax.lax.top_k(score_BN, keep)
    kept_BM = constrain(jnp.sort(best_BM, axis=1), "batch", None)
    tokens_BMD = jnp.take_along_axis(x_BND[:, globals:], kept_BM[:, :, None], axis=1)
    if not globals:
        return tokens_BMD, kept_BM
    return jnp.concatenate([x_BND[:, :globals], tokens_BMD], axis=1), kept_BM
