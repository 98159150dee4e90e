"""Choosing tokens: what may follow, drawing from the nucleus, and the bookkeeping of beams. No model is known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# The logarithm of no chance at all, finite so that sums of several stay numbers.
NEVER = -1e30
# Below this temperature, only the most likely token has a chance that a float32 knows of.
COLD = 1e-6


def forbid(log_p_RV: jax.Array, ids: Sequence[int], when: jax.Array) -> jax.Array:
    """log p, or logits, without a chance for these tokens where `when` holds; the others keep what they have."""
    if not ids:
        return log_p_RV
    forbidden_V = jnp.zeros(log_p_RV.shape[-1], bool).at[jnp.asarray(ids)].set(True)
    return jnp.where((when & forbidden_V)[None], NEVER, log_p_RV)


def is_one_of(token: jax.Array, ids: Sequence[int]) -> jax.Array:
    """Which tokens are among these."""
    return jnp.isin(token, jnp.asarray(ids, token.dtype)) if ids else jnp.zeros(token.shape, bool)


def nucleus(logits_RV: jax.Array, share: float) -> jax.Array:
    """The logits of the most likely tokens that together have `share` of the chances, NEVER for the others.

    The token that crosses the share is in, so there is always one; those as likely as it are in too.

    Nothing is sorted, which would take longer than the model itself on some machines: the chance that the least likely
    one has is found by halving, among all float32, whose order is that of their bits.
    """
    if share >= 1.0:
        return logits_RV
    chance_RV = jax.nn.softmax(logits_RV.astype(jnp.float32), axis=-1)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        below_R, least_R = bounds
        middle_R = below_R + (least_R - below_R) // 2
        more_likely_RV = chance_RV > _float_of(middle_R)[:, None]
        low_R = jnp.where(more_likely_RV, chance_RV, 0.0).sum(axis=-1) >= share
        return jnp.where(low_R, middle_R, below_R), jnp.where(low_R, least_R, middle_R)

    most_R = jax.lax.bitcast_convert_type(chance_RV.max(axis=-1), jnp.int32)
    _, least_R = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(most_R, -1), most_R))
    return jnp.where(chance_RV >= _float_of(least_R)[:, None], logits_RV, NEVER)


def _float_of(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def draw(keys_R: jax.Array, logits_RV: jax.Array, temperature: float, share: float) -> jax.Array:
    """One token for each row, each by its own key; temperature 0 takes the most likely."""
    if temperature < COLD:
        return jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    # The most likely is at 0, so that nothing is lost in large numbers; what was forbidden is so at any temperature.
    below_RV = (logits_RV - logits_RV.max(axis=-1, keepdims=True)) / temperature
    logits_RV = nucleus(jnp.where(logits_RV <= 0.5 * NEVER, NEVER, below_RV), share)
    return jax.vmap(jax.random.categorical)(keys_R, logits_RV).astype(jnp.int32)


def length_norm(length: jax.Array | float, power: float) -> jax.Array:
    """What log p of a text of this length is divided by: ((5 + length) / 6) ** power (GNMT)."""
    return jnp.asarray(((5.0 + length) / 6.0) ** power, jnp.float32)


@flax.struct.dataclass
class Beams:
    """The K best texts of each row that go on, and the K best that have ended; both best first.

    log_p_BK: of those that go on; score_BK: log p over `length_norm` of those that ended, NEVER where there is none.
    """

    tokens_BKN: jax.Array
    log_p_BK: jax.Array
    ended_BKN: jax.Array
    score_BK: jax.Array

    @classmethod
    def begin(cls, rows: int, beams: int, longest: int) -> Beams:
        """One empty text for each row; the other places are to be filled by what follows it."""
        nothing_BKN = jnp.zeros((rows, beams, longest), jnp.int32)
        log_p_BK = jnp.full((rows, beams), NEVER, jnp.float32).at[:, 0].set(0.0)
        return cls(nothing_BKN, log_p_BK, nothing_BKN, jnp.full((rows, beams), NEVER, jnp.float32))


def extend(
    beams: Beams, log_p_BKV: jax.Array, step: jax.Array, stop: Sequence[int], power: float
) -> tuple[Beams, jax.Array, jax.Array]:
    """(the beams one token longer, the parent of each text that goes on [B, K], its new token [B, K])."""
    batch, count, vocab = log_p_BKV.shape
    # So many that K are left however many of them end.
    wanted = min(count * (1 + len(stop)), count * vocab)
    total_BX = (beams.log_p_BK[..., None] + log_p_BKV).reshape(batch, -1)
    best_BC, place_BC = jax.lax.top_k(total_BX, wanted)
    parent_BC, token_BC = place_BC // vocab, (place_BC % vocab).astype(jnp.int32)
    tokens_BCN = jnp.take_along_axis(beams.tokens_BKN, parent_BC[..., None], axis=1).at[:, :, step].set(token_BC)
    ends_BC = is_one_of(token_BC, stop)

    # A text ends where ending is among the K best that can follow, as it goes on where that is.
    counts_C = jnp.arange(wanted) < count
    score_BC = jnp.where(ends_BC & counts_C[None], best_BC / length_norm(step + 1.0, power), NEVER)
    # What has no chance has not ended either.
    score_BC = jnp.where(best_BC <= 0.5 * NEVER, NEVER, score_BC)
    all_BX = jnp.concatenate([beams.score_BK, score_BC], axis=1)
    score_BK, kept_BK = jax.lax.top_k(all_BX, count)
    ended_BXN = jnp.concatenate([beams.ended_BKN, tokens_BCN], axis=1)
    ended_BKN = jnp.take_along_axis(ended_BXN, kept_BK[..., None], axis=1)

    log_p_BK, live_BK = jax.lax.top_k(jnp.where(ends_BC, NEVER, best_BC), count)
    tokens_BKN = jnp.take_along_axis(tokens_BCN, live_BK[..., None], axis=1)
    parent_BK, token_BK = (jnp.take_along_axis(x, live_BK, axis=1) for x in (parent_BC, token_BC))
    return Beams(tokens_BKN, log_p_BK, ended_BKN, score_BK), parent_BK, token_BK


def can_improve(beams: Beams, longest: int, power: float, wanted: int) -> jax.Array:
    """[B]: whether a text that goes on could still end better than the worst of the `wanted` best that ended."""
    at_best_B = beams.log_p_BK[:, 0] / length_norm(float(longest), max(power, 0.0))
    return at_best_B > beams.score_BK[:, wanted - 1]


def finish(beams: Beams, longest: int, power: float) -> tuple[jax.Array, jax.Array]:
    """(texts [B, K, N], scores [B, K]), best first; those that were cut off count with what they have."""
    cut_BK = jnp.where(beams.log_p_BK <= 0.5 * NEVER, NEVER, beams.log_p_BK / length_norm(float(longest), power))
    all_BX = jnp.concatenate([beams.score_BK, cut_BK], axis=1)
    score_BK, kept_BK = jax.lax.top_k(all_BX, cut_BK.shape[1])
    texts_BXN = jnp.concatenate([beams.ended_BKN, beams.tokens_BKN], axis=1)
    return jnp.take_along_axis(texts_BXN, kept_BK[..., None], axis=1), score_BK
