"""Multi-instance max-margin (MI-MM), for fine-tuning on EPIC-KITCHENS-100 MIR: right pairs lead by a margin.

With x_ij the cosine of text i and video j, each row i asks max(0, m - x_ii + x_ij) and max(0, m - x_ii + x_ji) of every
other row j; the loss is the mean over these 2 n (n - 1) terms. The margin m is 0.2, or, where relevancy says how well a
clip's sampled sentence fits it, 0.4 times that of row i ("adaptive", EgoVLP and LaViLa). In the public code other rows
of the batch that show the same action push away as all others do; exclude_equal_texts spares those with the same text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._pairs import MASKED, Rows, cosines, each_row, finds, pairs_of, text_groups
from vidlang.objectives._rows import fixed, mean, need, wide

FIXED_MARGIN, ADAPTIVE_MARGIN = 0.2, 0.4


def loss(
    outputs: Any,
    batch: Mapping[str, Any],
    *,
    adaptive: bool = False,
    margin: float | None = None,
    exclude_equal_texts: bool = False,
    chunk: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean of what the terms of all pairs of different rows lack to their margin.

    `outputs` has video_BE and text_BE; its scale plays no part, so a learned one stays as it is. `margin` is 0.2, or
    0.4 where `adaptive` multiplies it with batch["relevancy_B"] of the row that is asked. `exclude_equal_texts` leaves
    out pairs of rows with equal text_BL; the mean is over the terms that are left. `batch["valid_B"]`, where present,
    drops rows, and `batch["weight_B"]` weighs the terms of each row. `violated` is the share of terms that are not 0.
    """
    if margin is None:
        margin = ADAPTIVE_MARGIN if adaptive else FIXED_MARGIN
    if margin <= 0:
        raise ValueError(f"max_margin: margin must be above 0; found {margin}")
    pairs = pairs_of(outputs, batch, "max_margin")
    rows, dtype = pairs.valid_B.shape[0], wide(pairs.video_BE)
    margin_B = jnp.full([rows], margin, dtype)
    if adaptive:
        why = (
            "adaptive margins are shares of it: let clip.fields hold 'relevancy', and the table the column text_weights"
        )
        relevancy_B = jnp.asarray(need(batch, "relevancy_B", why)).astype(dtype)
        margin_B = margin_B * jnp.where(pairs.valid_B, relevancy_B, 0)
    more = {"margin": margin_B}
    if exclude_equal_texts:
        more["group"] = text_groups(batch, chunk, "exclude_equal_texts compares texts")
    sum_B, count_B, violated_B, hit_B2 = each_row(_row, pairs, chunk, more=more)
    even_B = pairs.valid_B.astype(jnp.float32)
    scalars = {f"accuracy_{way}": mean(hit_B2[:, place], even_B) for place, way in enumerate(("v2t", "t2v"))}
    scalars["violated"] = _mean_of_terms(violated_B, count_B, even_B)
    return _mean_of_terms(sum_B, count_B, pairs.weight_B), fixed(scalars)


def _row(own: Rows, whole: Rows) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of one row's terms the sum, the number, and how many are not 0; then whether it finds its text and its video."""
    own_B = whole["index"] == own["index"]
    asked_B = whole["valid"] & ~own_B
    if "group" in own:
        asked_B = asked_B & (whole["group"] != own["group"])
    dtype = own["margin"].dtype
    total, violated, hits = jnp.zeros((), dtype), jnp.zeros((), dtype), []
    for query_E, candidate_BE in ((own["video"], whole["text"]), (own["text"], whole["video"])):
        cosine_B = cosines(query_E, candidate_BE)
        right = jnp.where(own_B, cosine_B, 0).sum()
        term_B = jnp.where(asked_B, jax.nn.relu(own["margin"] - right + cosine_B), 0)
        total, violated = total + term_B.sum(), violated + (term_B > 0).sum()
        hits.append(finds(jnp.where(whole["valid"], cosine_B, MASKED), own_B))
    return total, 2 * asked_B.sum().astype(dtype), violated, jnp.stack(hits)


def _mean_of_terms(sum_B: jax.Array, count_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """The mean over terms, each with the weight of its row; 0 where there is no term."""
    count = (count_B * weight_B).sum()
    return (sum_B * weight_B).sum() / jnp.where(count > 0, count, 1)
