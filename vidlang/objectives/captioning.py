"""Captioning: each next token of a clip's text, given the clip and the tokens before it (teacher forcing)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.models.text import not_padding
from vidlang.objectives._classes import among_best, check_smoothing, cross_entropy
from vidlang.objectives._rows import blank, fixed, mean, need, row_weights, valid_rows


def loss(
    outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of the tokens of batch["text_BL"] after the first, under outputs.caption_BLV.

    Place l of caption_BLV predicts token l + 1; what the last place predicts is not looked at. Padding, the trailing
    run of zeros, is not asked for; the end of the text is. With `batch["prompt_B"]`, the first so many tokens of each
    text are a prompt, which is not asked for either. `label_smoothing` is spread over all words. All tokens of
    the batch count alike; `batch["valid_B"]`, where present, drops those of a row, and `batch["weight_B"]` weighs them.
    As an auxiliary of another objective it is a part of `combined`.
    """
    check_smoothing("captioning", label_smoothing)
    caption_BLV = outputs.caption_BLV
    text_BL = jnp.asarray(need(batch, "text_BL", "captioning asks for its tokens"))
    if caption_BLV.ndim != 3 or caption_BLV.shape[:2] != text_BL.shape:
        raise ValueError(
            f"captioning needs caption_BLV [B, L, V] for a text_BL [B, L]; found the shapes {caption_BLV.shape} and "
            f"{text_BL.shape}"
        )
    valid_B = valid_rows(batch, text_BL.shape[0])
    # The last place, which nothing follows, is masked and not cut off, for that would copy all logits.
    next_BL = jnp.roll(text_BL, -1, axis=1)
    asked_BL = jnp.roll(not_padding(text_BL), -1, axis=1).at[:, -1].set(False) & valid_B[:, None]
    if "prompt_B" in batch:
        place_1L = jnp.arange(1, text_BL.shape[1] + 1)[None]  # of what is predicted
        asked_BL = asked_BL & (place_1L >= jnp.asarray(batch["prompt_B"])[:, None])
    caption_BLV = blank(caption_BLV, valid_B)
    weight_BL = row_weights(batch, valid_B, caption_BLV.dtype)[:, None] * asked_BL
    one_BL = asked_BL.astype(jnp.float32)
    scalars = {
        "accuracy": mean(among_best(caption_BLV, next_BL), one_BL),
        "asked": mean(one_BL.sum(axis=1), valid_B.astype(jnp.float32)),
    }
    return mean(cross_entropy(caption_BLV, next_BL, label_smoothing), weight_BL), fixed(scalars)
