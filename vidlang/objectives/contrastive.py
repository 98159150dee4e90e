"""Symmetric InfoNCE over the global batch, exact, without ever holding its B x B logits (`_pairs`).

Rows with equal texts are each other's wrong answers by default. With targets="equal_texts" they are all right: what a
query is asked for is split evenly over them, as SViTT does for items of one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._pairs import MASKED, Rows, cosines, each_row, finds, pairs_of, text_groups
from vidlang.objectives._rows import fixed, mean

TARGETS = ("own", "equal_texts")
REDUCTIONS = ("mean", "sum")


def loss(
    outputs: Any,
    batch: Mapping[str, Any],
    *,
    chunk: int = 1024,
    direction_reduction: str = "mean",
    targets: str = "own",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of finding each video's text, and each text's video, among those of the whole batch.

    `outputs` has video_BE and text_BE (row i of one belongs to row i of the other) and the logit scale.
    `direction_reduction` is "mean" or "sum" over the two directions. `targets` says what is right: the row's "own"
    partner, or those of all "equal_texts" (rows of one text_BL). `batch["valid_B"]`, where present, drops rows both as
    queries and as candidates. `batch["weight_B"]`, where present, weighs the rows as queries, by its ratios alone:
    twice the weights are the same loss. `chunk` rows a device are worked on at once; it never changes the result.
    In-batch accuracies count each valid row once, and a tie with a wrong candidate as wrong. Everything is computed in
    float32.
    """
    if direction_reduction not in REDUCTIONS:
        raise ValueError(f'direction_reduction must be "mean" or "sum"; found {direction_reduction!r}')
    if targets not in TARGETS:
        raise ValueError(f"contrastive: targets is {targets!r}; it is one of {', '.join(TARGETS)}")
    pairs = pairs_of(outputs, batch, "contrastive")
    more: dict[str, jax.Array] = {}
    if targets == "equal_texts":
        more["group"] = text_groups(batch, chunk, 'targets="equal_texts" compares texts')
    loss_B2, hit_B2 = each_row(_both_directions(targets), pairs, chunk, more=more, scalars=(pairs.scale,))
    v2t, t2v = (mean(loss_B2[:, way], pairs.weight_B) for way in range(2))
    total = v2t + t2v if direction_reduction == "sum" else (v2t + t2v) / 2
    accuracy_v2t, accuracy_t2v = (mean(hit_B2[:, way], pairs.valid_B.astype(jnp.float32)) for way in range(2))
    return total, fixed({"scale": pairs.scale, "accuracy_t2v": accuracy_t2v, "accuracy_v2t": accuracy_v2t})


def _both_directions(targets: str) -> Callable[[Rows, Rows, jax.Array], tuple[jax.Array, jax.Array]]:
    """What a row does: its losses and hits, [2] each (v2t, t2v)."""
    name = "group" if targets == "equal_texts" else "index"

    def row(own: Rows, whole: Rows, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        right_B = (whole[name] == own[name]) & whole["valid"]
        v2t = _query(own["video"], whole["text"], right_B, whole["valid"], scale)
        t2v = _query(own["text"], whole["video"], right_B, whole["valid"], scale)
        return jnp.stack([v2t[0], t2v[0]]), jnp.stack([v2t[1], t2v[1]])

    return row


def _query(
    query_E: jax.Array, candidate_BE: jax.Array, right_B: jax.Array, valid_B: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of the right candidates, alike, and whether one is found; mapped over a chunk of queries."""
    logit_B = jnp.where(valid_B, scale * cosines(query_E, candidate_BE), MASKED)
    right = jnp.where(right_B, logit_B, 0).sum() / jnp.maximum(right_B.sum(), 1)
    return jax.nn.logsumexp(logit_B) - right, finds(logit_B, right_B)
