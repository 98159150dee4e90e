"""SigLIP's pairwise sigmoid: each pair of a video and a text in the batch is a question of its own, together or not.

No pair competes with another, so nothing is normalised over the batch. A batch of B has B right pairs and B (B - 1)
wrong ones; a bias that starts near -10 says so, and training begins near a loss of one instead of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._pairs import MASKED, Rows, cosines, each_row, finds, pairs_of
from vidlang.objectives._rows import fixed, mean


def loss(
    outputs: Any, batch: Mapping[str, Any], *, bias: float | None = None, chunk: int = 1024
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log loss of all B x B pairs, summed over a video's texts and averaged over videos.

    The logit of a pair is scale * cosine + bias. The bias is outputs.bias, which the model learns, or, of a model
    without one, the number `bias`. `batch["valid_B"]`, where present, drops rows as videos and as texts;
    `batch["weight_B"]` weighs the videos. `chunk` rows a device are worked on at once.
    """
    learned = getattr(outputs, "bias", None)
    if (learned is None) == (bias is None):
        found = "neither is there" if bias is None else "both are there"
        raise ValueError(
            f"sigmoid adds one bias to its logits, the model's (a model's temperature.bias) or its own option bias, "
            f"and {found}; give one of them, such as -10.0"
        )
    pairs = pairs_of(outputs, batch, "sigmoid")
    offset = jnp.asarray(bias if learned is None else learned).astype(pairs.scale.dtype)
    loss_B, hit_B = each_row(_row, pairs, chunk, scalars=(pairs.scale, offset))
    accuracy_v2t = mean(hit_B, pairs.valid_B.astype(jnp.float32))
    return mean(loss_B, pairs.weight_B), fixed({"scale": pairs.scale, "bias": offset, "accuracy_v2t": accuracy_v2t})


def _row(own: Rows, whole: Rows, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The losses of one video with all texts, summed, and whether its own scores highest."""
    logit_B = scale * cosines(own["video"], whole["text"]) + bias
    own_B = whole["index"] == own["index"]
    loss_B = jax.nn.softplus(jnp.where(own_B, -logit_B, logit_B))
    found = finds(jnp.where(whole["valid"], logit_B, MASKED), own_B)
    return jnp.where(whole["valid"], loss_B, 0).sum(), found
