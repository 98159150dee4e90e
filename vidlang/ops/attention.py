"""Scaled dot-product attention: a plain reference, faster ones of the same signature, and `attend`, which picks.

Masks are boolean and True where a query may attend; a bias is added to the logits. A query that may attend to no key at
all gets zeros, so that rows of pure padding stay finite under every implementation.

reference: all in float32, all weights in memory. fused: the kernel of jax.nn, cuDNN's flash attention where it serves.
chunked: any device, memory linear in the tokens, some more arithmetic. splash: TPU's flash attention. ring: chunked, of
tokens that lie on several devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from absl import logging

from vidlang.core.sharding import active_mesh, partition_spec, platform
from vidlang.ops.chunked import chunked_attention
from vidlang.ops.ring import ring_attention, ring_ways

IMPLEMENTATIONS = ("auto", "fused", "reference", "chunked", "splash", "ring")


def dense_attention(
    q_BNAK: jax.Array,
    k_BSAK: jax.Array,
    v_BSAK: jax.Array,
    mask_BANS: jax.Array | None = None,
    bias_BANS: jax.Array | None = None,
) -> jax.Array:
    """The reference: everything in float32, all weights in memory at once; returns q's dtype."""
    q_BNAK, dtype = q_BNAK.astype(jnp.float32), q_BNAK.dtype
    logits_BANS = jnp.einsum("BNAK,BSAK->BANS", q_BNAK, k_BSAK.astype(jnp.float32))
    logits_BANS = logits_BANS * q_BNAK.shape[-1] ** -0.5
    if bias_BANS is not None:
        logits_BANS = logits_BANS + bias_BANS.astype(jnp.float32)
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
    bias_BANS: jax.Array | None = None,
    causal: bool = False,
    implementation: str = "auto",
    spread: bool = False,
) -> jax.Array:
    """Attention by the named implementation; "auto" takes what is fastest here among those that serve.

    `mask_BANS` and `bias_BANS` may have size 1 along B, A and N. `causal` lets token n see the tokens 0..n only.
    spread: queries and keys are the tokens that the mesh axis "context" splits, and `goes_round` has said yes.
    """
    _check(q_BNAK, k_BSAK, v_BSAK, mask_BANS, bias_BANS, causal, implementation)
    if spread:
        return ring_attention(q_BNAK, k_BSAK, v_BSAK, mask_BANS, bias_BANS, causal=causal)
    here, plain = platform(), mask_BANS is None and bias_BANS is None
    splash = splash_refusal(here, plain=plain and not causal, square=q_BNAK.shape == k_BSAK.shape)
    if implementation == "splash" and splash:
        raise ValueError(splash)
    backend = fused_backend(here, q_BNAK.dtype, head_size=q_BNAK.shape[-1], masked=not plain)
    if implementation == "auto":
        implementation = "fused" if splash else "splash"
        note_choice("dense attention", f"fused ({backend})" if splash else "splash")
    if implementation == "splash":
        from vidlang.ops.splash import splash_dense

        return on_local_heads(splash_dense, q_BNAK, k_BSAK, v_BSAK)
    if implementation in ("chunked", "ring"):
        return chunked_attention(q_BNAK, k_BSAK, v_BSAK, mask_BANS, bias_BANS, causal=causal)
    if causal and (mask_BANS is not None or implementation == "reference"):
        order_BANS, causal = _causal_mask(q_BNAK.shape[1]), False
        mask_BANS = order_BANS if mask_BANS is None else mask_BANS & order_BANS
    if implementation == "reference":
        return dense_attention(q_BNAK, k_BSAK, v_BSAK, mask_BANS, bias_BANS)
    bias_BANS = None if bias_BANS is None else bias_BANS.astype(jnp.float32)
    o_BNAK = jax.nn.dot_product_attention(
        q_BNAK, k_BSAK, v_BSAK, bias_BANS, mask_BANS, is_causal=causal, implementation=backend
    )
    return _zero_without_keys(o_BNAK, mask_BANS)


def goes_round(implementation: str) -> bool:
    """Whether tokens lie on several devices here and keys shall go round among these; else each gets all of them."""
    round_ = implementation in ("auto", "ring") and ring_ways() > 1
    if round_:
        note_choice("dense attention over context", "ring")
    return round_


def fused_backend(platform: str, dtype: jnp.dtype, *, head_size: int, masked: bool) -> Literal["cudnn", "xla"]:
    """Which kernel jax.nn shall use: cuDNN's flash attention where it serves, else the one XLA compiles.

    cuDNN takes half precision and head sizes that are multiples of 8 up to 128. It would turn a mask into a bias, which
    it refuses to differentiate for odd token counts, so attention with a mask or a bias (`masked`) goes to XLA.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = head_size % 8 == 0 and head_size <= 128
    return "cudnn" if platform == "gpu" and half and fits and not masked else "xla"


def splash_refusal(platform: str, *, plain: bool, square: bool) -> str | None:
    """Why splash attention cannot serve here, or None: it is for TPUs, all tokens to all tokens."""
    if platform != "tpu":
        return f"splash attention runs on TPUs and this is a {platform}; 'chunked' needs as little memory anywhere"
    if not plain or not square:
        return (
            "splash attention serves all tokens to all tokens, without mask, order or bias; take 'fused' or 'chunked'"
        )
    return None


def cls_scores(q_BAK: jax.Array, k_BNAK: jax.Array, bias_BAN: jax.Array | None = None) -> jax.Array:
    """How much one query (cls) attends to each key, as the mean over heads; float32 [B, N], rows sum to 1.

    This is what token pruning ranks by. The keys should be all that the query attended to, itself included, and the
    bias (of batch 1 or B) what was added to its logits.
    """
    if q_BAK.ndim != 3 or k_BNAK.ndim != 4 or q_BAK.shape != k_BNAK[:, 0].shape:
        raise ValueError(f"cls_scores takes q [B, A, K] and k [B, N, A, K]; found q {q_BAK.shape}, k {k_BNAK.shape}")
    logits_BAN = jnp.einsum("BAK,BNAK->BAN", q_BAK, k_BNAK, preferred_element_type=jnp.float32)
    logits_BAN = logits_BAN * q_BAK.shape[-1] ** -0.5
    return jax.nn.softmax(logits_BAN if bias_BAN is None else logits_BAN + bias_BAN, axis=-1).mean(axis=1)


@functools.cache
def note_choice(what: str, choice: str) -> None:
    """Logs which implementation "auto" took, once for each distinct answer of the process."""
    logging.info("%s: %s", what, choice)


def on_local_heads(
    kernel: Callable[..., jax.Array], q_BNAK: jax.Array, k_BNAK: jax.Array, v_BNAK: jax.Array, *rest: Any
) -> jax.Array:
    """Runs a hand-written kernel on each device's own rows and heads, since the compiler cannot split it.

    Every device needs all tokens of its rows; those of the mesh axis "context" repeat the same work. `rest` is whole
    on every device.
    """
    mesh = active_mesh()
    if mesh is None or mesh.manual_axes:
        return kernel(q_BNAK, k_BNAK, v_BNAK, *rest)
    own, whole = partition_spec(("batch", None, "act_heads", None)), partition_spec(())
    # Kernels do not say over which mesh axes their outputs vary, so that cannot be checked.
    local = jax.shard_map(kernel, in_specs=(own, own, own, *[whole] * len(rest)), out_specs=own, check_vma=False)
    return local(q_BNAK, k_BNAK, v_BNAK, *rest)


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
    bias_BANS: jax.Array | None,
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
    full = (batch, heads, queries, keys)
    for x, what, kind in ((mask_BANS, "mask is boolean", jnp.bool_), (bias_BANS, "bias is floating", jnp.floating)):
        if x is None:
            continue
        fits = x.ndim == 4 and x.shape[-1] == keys
        fits = fits and all(m in (1, n) for m, n in zip(x.shape, full, strict=True))
        if not jnp.issubdtype(x.dtype, kind) or not fits:
            raise ValueError(f"an attention {what}, {full} or 1 along its first three axes; found {x.dtype} {x.shape}")
