"""Classification by one head or several, of clips that may be mixed of two and labels that may be unknown.

The heads are those of the model, each named after the column with its labels: "label" asks batch["label_B"], so that
name stands in clip.fields. A verb head and a noun head are two questions of one clip, added by their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.config import did_you_mean
from vidlang.objectives._classes import among_best, check_smoothing, cross_entropy
from vidlang.objectives._rows import blank, fixed, mean, need, row_weights, valid_rows


def loss(
    outputs: Any,
    batch: Mapping[str, Any],
    *,
    heads: Mapping[str, float] | None = None,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over heads of weight times mean cross entropy of the labels.

    `heads` are the weights of the heads that count; None is all of the model's, each 1. `label_smoothing` is spread
    evenly over the classes. Where mixup or cutmix mixed clips, a row is asked for both labels by their shares. A label
    of -1 is unknown, and that clip, or share of one, is left out of the head's mean. `batch["valid_B"]`, where
    present, drops rows, and `batch["weight_B"]` weighs them. Of a mixed clip, accuracies ask for the larger share.
    """
    check_smoothing("classification", label_smoothing)
    logits = dict(outputs.logits)
    weights = dict.fromkeys(logits, 1.0) if heads is None else dict(heads)
    _check_heads(weights, logits)
    total = jnp.zeros((), jnp.float32)
    scalars: dict[str, jax.Array] = {}
    for head, weight in weights.items():
        one, accuracies = _one_head(head, logits[head], batch, label_smoothing)
        total = total + weight * one
        scalars |= accuracies
        if len(weights) > 1:
            scalars[f"{head}_loss"] = one
    return total, fixed(scalars)


def _check_heads(weights: Mapping[str, float], logits: Mapping[str, jax.Array]) -> None:
    for head, weight in weights.items():
        if head not in logits:
            raise ValueError(
                f"classification: the model has no head {head!r}{did_you_mean(head, logits)}; it has: "
                f"{', '.join(logits)}"
            )
        if weight < 0:
            raise ValueError(f"classification: the weight of {head!r} must be from 0 on; found {weight}")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(
            "classification: no head has a weight above 0, so there is nothing to learn; name one in heads"
        )


def _one_head(
    head: str, logits_BC: jax.Array, batch: Mapping[str, Any], smoothing: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, accuracies) of one head."""
    rows = logits_BC.shape[0]
    label_B = jnp.asarray(need(batch, f"{head}_B", f"the head {head!r} is asked for it: let clip.fields hold {head!r}"))
    if logits_BC.ndim != 2 or label_B.shape != (rows,):
        raise ValueError(
            f"classification: the head {head!r} gives logits [B, C] for labels [B]; found the shapes "
            f"{logits_BC.shape} and {label_B.shape}"
        )
    valid_B = valid_rows(batch, rows)
    logits_BC = blank(logits_BC, valid_B)
    weight_B = row_weights(batch, valid_B, logits_BC.dtype)
    asked = [(label_B, jnp.ones([rows], logits_BC.dtype))]
    likely_B = label_B
    if "mix_share_B" in batch:
        share_B = jnp.asarray(batch["mix_share_B"]).astype(logits_BC.dtype)
        other_B = label_B[batch["mix_partner_B"]]
        asked = [(label_B, share_B), (other_B, 1 - share_B)]
        likely_B = jnp.where(share_B >= 0.5, label_B, other_B)
    loss_2B = jnp.stack([cross_entropy(logits_BC, target_B, smoothing) for target_B, _ in asked])
    known_2B = jnp.stack([weight_B * share_B * (target_B >= 0) for target_B, share_B in asked])
    counted_B = (valid_B & (likely_B >= 0)).astype(jnp.float32)
    accuracies = {f"{head}_top{k}": mean(among_best(logits_BC, likely_B, k), counted_B) for k in (1, 5)}
    return mean(loss_2B, known_2B), accuracies
