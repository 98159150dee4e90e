"""How likely a language model finds a text."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def log_likelihood(logits_BLV: jax.Array, text_BL: jax.Array, prompt_B: jax.Array) -> jax.Array:
    """float32 [B, 2]: sum of log p of the tokens from place prompt_B on, and how many these are.

    logits_BLV[:, l] are of token l + 1. Padding, the trailing run of zeros, is no token; the end of a text is one. The
    first token of all follows nothing and cannot be asked for.
    """
    place_1L = jnp.arange(text_BL.shape[1])[None]
    end_B = jnp.where(text_BL != 0, place_1L + 1, 0).max(axis=1)
    asked_BL = (place_1L >= prompt_B[:, None]) & (place_1L < end_B[:, None])
    log_p_BLV = jax.nn.log_softmax(logits_BLV[:, :-1].astype(jnp.float32), axis=-1)
    own_BL = jnp.take_along_axis(log_p_BLV, text_BL[:, 1:, None], axis=-1)[..., 0]
    sums_B = jnp.where(asked_BL[:, 1:], own_BL, 0.0).sum(axis=1)
    return jnp.stack([sums_B, asked_BL[:, 1:].sum(axis=1).astype(jnp.float32)], axis=1)
