"""Symmetric InfoNCE over the global batch, exact, without ever holding its B x B logits.

Each device takes its own rows of the batch, video against all texts and text against all videos, a chunk of rows at a
time. The backward pass computes a chunk's logits again, so the largest temporary is [chunk, B] on every device while
value and gradients are those of the plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from vidlang.core.sharding import per_batch_shard

# Finite, so that a batch without one valid row still has finite (zero) gradients.
MASKED = -1e30


def loss(
    outputs: Any, batch: Mapping[str, Any], *, chunk: int = 1024, direction_reduction: str = "mean"
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of finding each video's text, and each text's video, among those of the whole batch.

    `outputs` has video_BE and text_BE (row i of one belongs to row i of the other) and the logit scale.
    `direction_reduction` is "mean" or "sum" over the two directions. `batch["valid_B"]`, where present, drops rows
    both as queries and as candidates. `batch["weight_B"]`, where present, weighs the rows as queries, by its ratios
    alone: twice the weights are the same loss. `chunk` rows a device are worked on at once; it never changes the
    result. In-batch accuracies count each valid row once, and a tie as wrong. Everything is computed in float32.
    """
    if "mix_share_B" in batch:
        raise ValueError(
            "contrastive pairs a clip with its own text, and a mixed clip has two; take mixup and cutmix out of the "
            "stage's augment"
        )
    if direction_reduction not in ("mean", "sum"):
        raise ValueError(f'direction_reduction must be "mean" or "sum"; found {direction_reduction!r}')
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row; found {chunk}")
    video_BE, text_BE = outputs.video_BE, outputs.text_BE
    if video_BE.ndim != 2 or video_BE.shape != text_BE.shape:
        raise ValueError(
            f"contrastive pairs row i of video_BE with row i of text_BE; found shapes {video_BE.shape} and "
            f"{text_BE.shape}, expected two equal [B, E]"
        )
    rows = video_BE.shape[0]
    valid_B = batch.get("valid_B")
    valid_B = jnp.ones([rows], bool) if valid_B is None else jnp.asarray(valid_B, bool)
    chex.assert_shape(valid_B, (rows,))
    # An invalid row may hold anything, NaN included, and 0 * NaN would reach the gradient.
    video_BE, text_BE = (jnp.where(valid_B[:, None], x_BE.astype(jnp.float32), 0.0) for x_BE in (video_BE, text_BE))
    scale = jnp.asarray(outputs.scale, jnp.float32)

    loss_B2, hit_B2 = per_batch_shard(
        _both_directions(chunk), video_BE, text_BE, jnp.arange(rows), valid_B, replicated=(scale,)
    )

    even_B = valid_B / jnp.maximum(valid_B.sum(), 1)
    weight_B = _shares(batch["weight_B"], valid_B) if "weight_B" in batch else even_B
    v2t, t2v = (loss_B2 * weight_B[:, None]).sum(axis=0)
    accuracy_v2t, accuracy_t2v = (hit_B2 * even_B[:, None]).sum(axis=0)
    total = v2t + t2v if direction_reduction == "sum" else (v2t + t2v) / 2
    scalars = {"scale": scale, "accuracy_t2v": accuracy_t2v, "accuracy_v2t": accuracy_v2t}
    return total, jax.tree.map(jax.lax.stop_gradient, scalars)


def _shares(weight_B: jax.Array, valid_B: jax.Array) -> jax.Array:
    """What each row counts: its weight as a share of those of all valid rows, and nothing where that sum is 0."""
    chex.assert_equal_shape([weight_B, valid_B])
    weight_B = jnp.where(valid_B, weight_B.astype(jnp.float32), 0.0)
    total = weight_B.sum()
    return weight_B / jnp.where(total > 0, total, 1.0)


def _both_directions(chunk: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The work of one device: losses and hits [its rows, 2] (v2t, t2v), `chunk` rows at a time."""

    def device_rows(
        video_RE: jax.Array,
        text_RE: jax.Array,
        index_R: jax.Array,
        valid_R: jax.Array,
        scale: jax.Array,
        *,
        gather: Callable[[jax.Array], jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        video_BE, text_BE, valid_B = gather(video_RE), gather(text_RE), gather(valid_R)

        @jax.checkpoint
        def one_row(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            video_E, text_E, index = row
            v2t = _query(video_E, text_BE, index, valid_B, scale)
            t2v = _query(text_E, video_BE, index, valid_B, scale)
            return jnp.stack([v2t[0], t2v[0]]), jnp.stack([v2t[1], t2v[1]])

        return jax.lax.map(one_row, (video_RE, text_RE, index_R), batch_size=chunk)

    return device_rows


def _query(
    query_E: jax.Array, candidate_BE: jax.Array, index: jax.Array, valid_B: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of candidate `index`, and 1.0 where it alone scores highest; mapped over a chunk of queries."""
    # Highest precision: with a scale near 100, the three decimals that TF32 or bfloat16 passes keep are not enough.
    score_B = jnp.einsum("E,BE->B", query_E, candidate_BE, precision=jax.lax.Precision.HIGHEST)
    logit_B = jnp.where(valid_B, scale * score_B, MASKED)
    own = logit_B[index]
    hit = (logit_B >= own).sum() == 1
    return jax.nn.logsumexp(logit_B) - own, hit.astype(jnp.float32)
