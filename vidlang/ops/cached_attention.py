"""Attention of language models: keys and values shared by groups of heads, and one new token against a cache.

Heads come as [G, R]: R queries share each of G keys and values. Softmax and its caps are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cap(x: jax.Array, limit: float) -> jax.Array:
    """x below `limit` in size, smoothly; 0 is no limit (Gemma 2)."""
    return limit * jnp.tanh(x / limit) if limit else x


def causal_mask(tokens: int, window: jax.Array | int = 0) -> jax.Array:
    """[1, 1, N, N]: each token sees itself and those before it, at most `window` in all; 0 is no limit."""
    place_N = jnp.arange(tokens)
    back_NN = place_N[:, None] - place_N[None]
    seen_NN = back_NN >= 0
    if isinstance(window, int) and not window:
        return seen_NN[None, None]
    near_NN = (back_NN < window) | (jnp.asarray(window) == 0)
    return (seen_NN & near_NN)[None, None]


def capped_attention(
    q_BNAK: jax.Array, k_BSAK: jax.Array, v_BSAK: jax.Array, mask_BANS: jax.Array, limit: float
) -> jax.Array:
    """Dense attention of scaled queries whose logits are capped; `ops.attend` has no caps."""
    logits_BANS = jnp.einsum("BNAK,BSAK->BANS", q_BNAK, k_BSAK, preferred_element_type=jnp.float32)
    logits_BANS = cap(logits_BANS * q_BNAK.shape[-1] ** -0.5, limit)
    weight_BANS = jax.nn.softmax(jnp.where(mask_BANS, logits_BANS, -jnp.inf), axis=-1).astype(v_BSAK.dtype)
    return jnp.einsum("BANS,BSAK->BNAK", weight_BANS, v_BSAK)


def attend_to_cache(
    q_BAK: jax.Array,
    new: tuple[jax.Array, jax.Array],
    old: tuple[jax.Array, jax.Array],
    seen_BS: jax.Array,
    limit: float = 0.0,
) -> jax.Array:
    """What one new token of each row gets, [B, A, K]: from the cached tokens `seen_BS`, and from itself.

    new: its own key and value [B, G, K]. old: those of the cache [B, S, G, K], which is read where it lies: it is
    neither repeated for the heads that share it nor written to.
    """
    (k_BGK, v_BGK), (k_BSGK, v_BSGK) = new, old
    batch, heads, size = q_BAK.shape
    groups = k_BGK.shape[1]
    q_BGRK = q_BAK.reshape(batch, groups, heads // groups, size)
    how = {"preferred_element_type": jnp.float32}
    logits_BGRS = jnp.einsum("BGRK,BSGK->BGRS", q_BGRK, k_BSGK, **how)
    own_BGR1 = jnp.einsum("BGRK,BGK->BGR", q_BGRK, k_BGK, **how)[..., None]
    logits_BGRS, own_BGR1 = (cap(x * size**-0.5, limit) for x in (logits_BGRS, own_BGR1))
    logits_BGRS = jnp.where(seen_BS[:, None, None], logits_BGRS, -jnp.inf)
    # The token itself is always there, so that the largest logit is finite.
    weight_BGRS = jax.nn.softmax(jnp.concatenate([logits_BGRS, own_BGR1], axis=-1), axis=-1).astype(v_BGK.dtype)
    o_BGRK = jnp.einsum("BGRS,BSGK->BGRK", weight_BGRS[..., :-1], v_BSGK)
    o_BGRK = o_BGRK + weight_BGRS[..., -1:] * v_BGK[:, :, None]
    return o_BGRK.reshape(batch, heads, size)
