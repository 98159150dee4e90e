"""Scaled dot-product attention: a plain reference, the fused one of jax.nn, and `attend`, the only switch between them.

Masks are boolean and True where a query may attend. A query that may attend to no key at all gets zeros, so that rows
of pure padding stay finite under every implementation.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "fused", "reference")


def dense_attention(
    q_BNAK: jax.Array, k_BSAK: jax.Array, v_BSAK: jax.Array, mask_BANS: jax.Array | None = None
) -> jax.Array:
    """The reference: everything in float32, all weights in memory at once; returns q's dtype."""
    q_BNAK, dtype = q_BNAK.astype(jnp.float32), q_BNAK.dtype
    logits_BANS = jnp.einsum("BNAK,BSAK->BANS", q_BNAK, k_BSAK.astype(jnp.float32))
    logits_BANS = logits_BANS * q_BNAK.shape[-1] ** -0.5
    if mask_BANS is not None:
        logits_BANS = jnp.where(mask_BANS, logits_BANS, jnp.finfo(jnp.float32).min)
    weights_BANS = jax.nn.softmax(logits_BANS, axis=-1)
    o_BNAK = jnp.einsum("BANS,BSAK->BNAK", weights_BANS, v_BSAK.astype(jnp.float32))
    return _zero_without_keys(o_BNAK, mask_BANS).astype(dtype)


def attend(
    q_BNAK: jax.Array,
    k_BSAK: jax.Array,
    v_BSAK: jax.Array,
    *,
    mask_BANS: jax.Array | None = None,
    causal: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Attention by the named implementation; "auto" takes the fused one, which serves whatever is valid here.

    `mask_BANS` may have size 1 along B, A and N. `causal` lets token n see the tokens 0..n only.
    """
    _check(q_BNAK, k_BSAK, v_BSAK, mask_BANS, causal, implementation)
    if mask_BANS is not None and causal:
        mask_BANS, causal = mask_BANS & _causal_mask(q_BNAK.shape[1]), False
    if implementation == "reference":
        return dense_attention(q_BNAK, k_BSAK, v_BSAK, _causal_mask(q_BNAK.shape[1]) if causal else mask_BANS)
    backend = fused_backend(
        jax.default_backend(), q_BNAK.dtype, head_size=q_BNAK.shape[-1], masked=mask_BANS is not None
    )
    o_BNAK = jax.nn.dot_product_attention(
        q_BNAK, k_BSAK, v_BSAK, mask=mask_BANS, is_causal=causal, implementation=backend
    )
    return _zero_without_keys(o_BNAK, mask_BANS)


def fused_backend(platform: str, dtype: jnp.dtype, *, head_size: int, masked: bool) -> Literal["cudnn", "xla"]:
    """Which kernel jax.nn shall use: cuDNN's flash attention where it serves, else the one XLA compiles.

    cuDNN takes half precision and head sizes that are multiples of 8 up to 128. It would turn a mask into a bias, which
    it refuses to differentiate for odd token counts, so masked attention (short text) goes to XLA.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = head_size % 8 == 0 and head_size <= 128
    return "cudnn" if platform == "gpu" and half and fits and not masked else "xla"


def _causal_mask(tokens: int) -> jax.Array:
    return jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]


def _zero_without_keys(o_BNAK: jax.Array, mask_BANS: jax.Array | None) -> jax.Array:
    if mask_BANS is None:
        return o_BNAK
    some_BAN = mask_BANS.any(axis=-1)
    return jnp.where(some_BAN.swapaxes(1, 2)[..., None], o_BNAK, jnp.zeros((), o_BNAK.dtype))


def _check(
    q_BNAK: jax.Array,
    k_BSAK: jax.Array,
    v_BSAK: jax.Array,
    mask_BANS: jax.Array | None,
    causal: bool,
    implementation: str,
) -> None:
    """ValueError for a request that no implementation here serves."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {implementation!r}; there are: {', '.join(IMPLEMENTATIONS)}")
    shapes = f"q {q_BNAK.shape}, k {k_BSAK.shape}, v {v_BSAK.shape}"
    if not q_BNAK.ndim == k_BSAK.ndim == v_BSAK.ndim == 4 or k_BSAK.shape != v_BSAK.shape:
        raise ValueError(f"attention takes q [B, N, A, K] and k, v [B, S, A, K]; found {shapes}")
    (batch, queries, heads, size), keys = q_BNAK.shape, k_BSAK.shape[1]
    if k_BSAK.shape != (batch, keys, heads, size):
        raise ValueError(f"q and k differ in batch, heads or head size: {shapes}")
    dtypes = {str(x.dtype) for x in (q_BNAK, k_BSAK, v_BSAK)}
    if len(dtypes) > 1 or not jnp.issubdtype(q_BNAK.dtype, jnp.floating):
        raise ValueError(f"q, k and v must share one floating dtype; found {', '.join(sorted(dtypes))}")
    if causal and queries != keys:
        raise ValueError(f"causal attention needs as many queries as keys; found {queries} and {keys}")
    if mask_BANS is None:
        return
    full = (batch, heads, queries, keys)
    fits = mask_BANS.ndim == 4 and mask_BANS.shape[-1] == keys
    fits = fits and all(m in (1, n) for m, n in zip(mask_BANS.shape, full, strict=True))
    if mask_BANS.dtype != jnp.bool_ or not fits:
        raise ValueError(
            f"an attention mask is boolean, {full} or 1 along its first three axes; "
            f"found {mask_BANS.dtype} {mask_BANS.shape}"
        )
