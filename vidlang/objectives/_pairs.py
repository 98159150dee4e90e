"""Every row of the global batch against all others, exact, without ever holding B x B numbers.

Each device takes its own rows of the batch, a chunk of rows at a time. The backward pass computes a chunk again, so the
largest temporary is [chunk, B] on every device while value and gradients are those of the plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.sharding import per_batch_shard
from vidlang.objectives._rows import blank, need, row_weights, valid_rows, wide

# Finite, so that a batch without one valid row still has finite (zero) gradients.
MASKED = -1e30

Rows = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Pairs:
    """Row i of video_BE belongs to row i of text_BE; rows that are not valid are zero and weigh nothing."""

    video_BE: jax.Array
    text_BE: jax.Array
    valid_B: jax.Array
    weight_B: jax.Array
    scale: jax.Array


def pairs_of(outputs: Any, batch: Mapping[str, Any], what: str) -> Pairs:
    """What an objective called `what` compares; ValueError for outputs or a batch that are no pairs."""
    if "mix_share_B" in batch:
        raise ValueError(
            f"{what} pairs a clip with its own text, and a mixed clip has two; take mixup and cutmix out of the "
            "stage's augment"
        )
    video_BE, text_BE = outputs.video_BE, outputs.text_BE
    if video_BE.ndim != 2 or video_BE.shape != text_BE.shape:
        raise ValueError(
            f"{what} pairs row i of video_BE with row i of text_BE; found shapes {video_BE.shape} and "
            f"{text_BE.shape}, expected two equal [B, E]"
        )
    valid_B = valid_rows(batch, video_BE.shape[0])
    dtype = wide(video_BE)
    weight_B = row_weights(batch, valid_B, dtype)
    return Pairs(
        blank(video_BE, valid_B), blank(text_BE, valid_B), valid_B, weight_B, jnp.asarray(outputs.scale).astype(dtype)
    )


def each_row(
    row: Callable[..., Any],
    pairs: Pairs,
    chunk: int,
    *,
    more: Rows | None = None,
    scalars: tuple[jax.Array, ...] = (),
) -> Any:
    """`row(own, whole, *scalars)` for every row of the batch, with its results stacked in front.

    `own` is one row of the arrays video, text, index, valid and `more`, `whole` are these arrays entire. `chunk` rows a
    device are worked on at once; it never changes the result.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row; found {chunk}")
    arrays = {
        "video": pairs.video_BE,
        "text": pairs.text_BE,
        "index": jnp.arange(pairs.valid_B.shape[0]),
        "valid": pairs.valid_B,
        **(more or {}),
    }

    def device_rows(*inputs: jax.Array, gather: Callable[[jax.Array], jax.Array]) -> Any:
        own = dict(zip(arrays, inputs, strict=False))
        whole, numbers = jax.tree.map(gather, own), inputs[len(arrays) :]

        @jax.checkpoint
        def one(own: Rows) -> Any:
            return row(own, whole, *numbers)

        return jax.lax.map(one, own, batch_size=chunk)

    return per_batch_shard(device_rows, *arrays.values(), replicated=scalars)


def cosines(query_E: jax.Array, candidate_BE: jax.Array) -> jax.Array:
    """How close a query is to each candidate."""
    # Highest precision: with a scale near 100, the three decimals that TF32 or bfloat16 passes keep are not enough.
    return jnp.einsum("E,BE->B", query_E, candidate_BE, precision=jax.lax.Precision.HIGHEST)


def finds(logit_B: jax.Array, right_B: jax.Array) -> jax.Array:
    """1.0 where a right candidate scores higher than all wrong ones; a tie is wrong."""
    best = jnp.where(right_B, logit_B, MASKED).max()
    return (best > jnp.where(right_B, MASKED, logit_B).max()).astype(jnp.float32)


def text_groups(batch: Mapping[str, Any], chunk: int, why: str) -> jax.Array:
    """For each row, the first row of the batch that has the same text, token by token."""
    text_BL = jnp.asarray(need(batch, "text_BL", why))

    def device_rows(text_RL: jax.Array, *, gather: Callable[[jax.Array], jax.Array]) -> jax.Array:
        text_LB = gather(text_RL).T

        def first(text_L: jax.Array) -> jax.Array:
            # One place of the texts after another: all at once would be [chunk, B, L].
            same_B, _ = jax.lax.scan(
                lambda same_B, place: (same_B & (place[0] == place[1]), None),
                text_LB[0] == text_L[0],
                (text_LB[1:], text_L[1:]),
            )
            return jnp.argmax(same_B).astype(jnp.int32)

        return jax.lax.map(first, text_RL, batch_size=chunk)

    return per_batch_shard(device_rows, text_BL)
