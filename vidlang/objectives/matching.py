"""Video-text matching (VTM): does this text belong to this video? Asked of pairs that a fusion encoder has read.

The model chooses the pairs: of each row the true one, and, with a hard negative in one place, a wrong text and a wrong
video. So two thirds of the answers are no, and accuracies are told apart by what the right answer is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._classes import among_best, cross_entropy
from vidlang.objectives._rows import blank, fixed, mean, row_weights, valid_rows


def loss(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of outputs.match_target_M (1: they belong together) under outputs.match_M2.

    Pairs come in blocks of B, and pair m is about row m mod B: it is dropped by that row's `batch["valid_B"]` and
    weighs what its `batch["weight_B"]` says, where the batch has them.
    """
    match_M2, target_M = outputs.match_M2, outputs.match_target_M
    if match_M2.ndim != 2 or match_M2.shape[1] != 2 or target_M.shape != match_M2.shape[:1]:
        raise ValueError(
            f"matching needs match_M2 [M, 2] and match_target_M [M]; found the shapes {match_M2.shape} and "
            f"{target_M.shape}"
        )
    pairs = match_M2.shape[0]
    rows = next((batch[name].shape[0] for name in ("valid_B", "weight_B") if name in batch), pairs)
    if pairs % rows:
        raise ValueError(f"matching has {pairs} pairs for a batch of {rows} rows; expected as many for each row")
    valid_B = valid_rows(batch, rows)
    valid_M = jnp.tile(valid_B, pairs // rows)
    match_M2 = blank(match_M2, valid_M)
    weight_M = jnp.tile(row_weights(batch, valid_B, match_M2.dtype), pairs // rows)
    hit_M = among_best(match_M2, target_M)
    scalars = {"accuracy": mean(hit_M, valid_M.astype(jnp.float32))}
    for name, answer in (("accuracy_true", 1), ("accuracy_false", 0)):
        scalars[name] = mean(hit_M, (valid_M & (target_M == answer)).astype(jnp.float32))
    return mean(cross_entropy(match_M2, target_M), weight_M), fixed(scalars)
