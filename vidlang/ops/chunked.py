"""Dense attention to a few keys after another: any device, memory linear in the tokens, some more arithmetic.

The rows of queries and of keys may be stretches of longer ones, as a device of several holds them (`ring`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlang.ops.online_softmax import Piece, PieceOf, Source, online_attention

# Keys that are worked on at once.
CHUNK = 256


def chunked_attention(
    q_BNAK: jax.Array,
    k_BSAK: jax.Array,
    v_BSAK: jax.Array,
    mask_BANS: jax.Array | None = None,
    bias_BANS: jax.Array | None = None,
    *,
    causal: bool = False,
    chunk: int = CHUNK,
) -> jax.Array:
    """Dense attention to `chunk` keys after another; weights are never kept, the backward pass computes them again."""
    k_BASK, v_BASK = k_BSAK.swapaxes(1, 2), v_BSAK.swapaxes(1, 2)
    row_of = chunks(q_BNAK.shape[1], k_BSAK.shape[1], causal=causal, chunk=chunk)
    source = cut(k_BASK, v_BASK, mask_BANS, bias_BANS, chunk=chunk)
    return online_attention((row_of,), q_BNAK.swapaxes(1, 2), (source,)).swapaxes(1, 2)


def cut(
    k_BASK: jax.Array,
    v_BASK: jax.Array,
    mask_BANS: jax.Array | None,
    bias_BANS: jax.Array | None,
    *,
    first: tuple[jax.Array, jax.Array] | None = None,
    chunk: int = CHUNK,
) -> Source:
    """Keys with what is said of them, in chunks. first: the places of the first query and key here, where not 0."""
    keys = k_BASK.shape[2]
    chunk, count = _sizes(keys, chunk)

    def split(x_BASx: jax.Array) -> jax.Array:
        """[B, A, S, x] -> [chunks, B, A, chunk, x]"""
        x_BASx = jnp.pad(x_BASx, ((0, 0), (0, 0), (0, count * chunk - keys), (0, 0)))
        return jnp.moveaxis(x_BASx.reshape(*x_BASx.shape[:2], count, chunk, -1), 2, 0)

    def turn_and_split(x_BANS: jax.Array | None) -> jax.Array | None:
        return None if x_BANS is None else split(x_BANS.swapaxes(2, 3))

    own = (split(k_BASK), split(v_BASK), turn_and_split(bias_BANS))
    return Source(own=own, data=(turn_and_split(mask_BANS), jnp.arange(count) * chunk), fixed=first)


def join(x_CBASx: jax.Array, keys: int) -> jax.Array:
    """What was split, whole again: [chunks, B, A, chunk, x] -> [B, A, S, x]."""
    x_BACSx = jnp.moveaxis(x_CBASx, 0, 2)
    return x_BACSx.reshape(*x_BACSx.shape[:2], -1, x_BACSx.shape[-1])[:, :, :keys]


def chunks(queries: int, keys: int, *, causal: bool, chunk: int = CHUNK, total: int | None = None) -> PieceOf:
    """What a chunk of `cut` holds, for these queries. total: how many keys there are, where those here go beyond."""
    size, count = _sizes(keys, chunk)

    def piece(source: Source) -> Piece:
        k_BACK, v_BACK, bias_BACN = source.own
        mask_BACN, start = source.data
        query, key = (0, 0) if source.fixed is None else source.fixed
        place_C = start + jnp.arange(size)
        seen_NC = jnp.broadcast_to((place_C < keys)[None], (1, size))
        if total is not None:
            seen_NC = seen_NC & (key + place_C < total)[None]
        if causal:
            seen_NC = seen_NC & (key + place_C[None] <= query + jnp.arange(queries)[:, None])
        all_seen = count * size == keys and total is None and not causal
        mask_BANC = None if all_seen else seen_NC[None, None]
        if mask_BACN is not None:
            given_BANC = mask_BACN.swapaxes(-1, -2)
            mask_BANC = given_BANC if mask_BANC is None else given_BANC & mask_BANC
        return Piece(k_BACK, v_BACK, None if bias_BACN is None else bias_BACN.swapaxes(-1, -2), mask_BANC)

    return piece


def _sizes(keys: int, chunk: int) -> tuple[int, int]:
    """(keys in a chunk, chunks)."""
    chunk = min(chunk, keys)
    return chunk, -(-keys // chunk)
