"""Masked language modelling: which words were hidden, guessed from those around them and from the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._classes import among_best, cross_entropy
from vidlang.objectives._rows import blank, fixed, mean, row_weights, valid_rows


def loss(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of the words asked for, outputs.word_target_BL, under outputs.word_BLV; -1 asks nothing.

    All words of the batch count alike, however many a row has; `batch["valid_B"]`, where present, drops those of a row,
    and `batch["weight_B"]` weighs them. `asked` is the mean number of words a row.
    """
    word_BLV, target_BL = outputs.word_BLV, outputs.word_target_BL
    if word_BLV.ndim != 3 or target_BL.shape != word_BLV.shape[:2]:
        raise ValueError(
            f"masked_lm needs word_BLV [B, L, V] and word_target_BL [B, L]; found the shapes {word_BLV.shape} and "
            f"{target_BL.shape}"
        )
    valid_B = valid_rows(batch, word_BLV.shape[0])
    asked_BL = (target_BL >= 0) & valid_B[:, None]
    word_BLV = blank(word_BLV, valid_B)
    weight_BL = row_weights(batch, valid_B, word_BLV.dtype)[:, None] * asked_BL
    one_BL = asked_BL.astype(jnp.float32)
    scalars = {
        "accuracy": mean(among_best(word_BLV, target_BL), one_BL),
        "asked": mean(one_BL.sum(axis=1), valid_B.astype(jnp.float32)),
    }
    return mean(cross_entropy(word_BLV, target_BL), weight_BL), fixed(scalars)
