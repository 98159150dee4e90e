"""VideoMAE: the pixels of the tubelets that were hidden, each tubelet normalised by its own mean and deviation.

Normalised, a tubelet asks for its structure and not for its brightness. VideoMAE takes mean and deviation of each
colour of a tubelet for itself, and divides by deviation + epsilon; MAE, for images, takes those of all its numbers
together, and divides by sqrt(variance + epsilon). Both divide the variance by one less than there are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._rows import blank, mean, row_weights, valid_rows

PER = ("channel", "tubelet")


def loss(
    outputs: Any,
    batch: Mapping[str, Any],
    *,
    normalize: bool = True,
    per: str = "channel",
    channels: int = 3,
    epsilon: float = 1e-6,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error of outputs.predicted_BMP against outputs.target_BMP, over all numbers of all hidden tubelets.

    Targets are pixels in 0..1, in the order frame, row, column, channel. `normalize` them by tubelet, `per` "channel"
    (VideoMAE) or all channels of a "tubelet" together (MAE), or compare the pixels themselves. `batch["valid_B"]`,
    where present, drops rows, and `batch["weight_B"]` weighs them.
    """
    if per not in PER:
        raise ValueError(f"reconstruction: per is {per!r}; it is one of {', '.join(PER)}")
    if epsilon <= 0:
        raise ValueError(f"reconstruction: epsilon must be above 0, for a tubelet of one colour; found {epsilon}")
    predicted_BMP, target_BMP = outputs.predicted_BMP, outputs.target_BMP
    if predicted_BMP.ndim != 3 or predicted_BMP.shape != target_BMP.shape:
        raise ValueError(
            f"reconstruction compares predicted_BMP and target_BMP, two equal [B, M, P]; found the shapes "
            f"{predicted_BMP.shape} and {target_BMP.shape}"
        )
    valid_B = valid_rows(batch, target_BMP.shape[0])
    # Pixels are data: nothing is learned through them, nor through a root whose slope at 0 is no number.
    predicted_BMP, target_BMP = blank(predicted_BMP, valid_B), jax.lax.stop_gradient(blank(target_BMP, valid_B))
    if normalize:
        target_BMP = _normalized(target_BMP, per, channels, epsilon)
    error_B = jnp.square(predicted_BMP - target_BMP).mean(axis=(1, 2))
    return mean(error_B, row_weights(batch, valid_B, error_B.dtype)), {}


def _normalized(target_BMP: jax.Array, per: str, channels: int, epsilon: float) -> jax.Array:
    """Each tubelet with mean 0 and deviation 1, as `per` says."""
    batch, masked, size = target_BMP.shape
    groups = channels if per == "channel" else 1
    if groups < 1 or size % groups or size // groups < 2:
        raise ValueError(
            f"reconstruction: tubelets of {size} numbers are no pixels of {groups} channels, two at least of each; set "
            "channels to those of the video"
        )
    x_BMPC = target_BMP.reshape(batch, masked, size // groups, groups)
    centred_BMPC = x_BMPC - x_BMPC.mean(axis=2, keepdims=True)
    variance_BM1C = jnp.square(centred_BMPC).sum(axis=2, keepdims=True) / (size // groups - 1)
    deviation_BM1C = jnp.sqrt(variance_BM1C) + epsilon if per == "channel" else jnp.sqrt(variance_BM1C + epsilon)
    return (centred_BMPC / deviation_BM1C).reshape(target_BMP.shape)
