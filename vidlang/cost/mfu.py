"""How long a train step would take if its matrix products ran at the card's printed peak and nothing else were done.

That time as a share of the real one is the model FLOPs utilisation (MFU). Both peaks are printed for bfloat16, in which
trainings are compared, whatever type a model computes in; what is computed again to save memory counts as well.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from absl import logging

from vidlang.cost.cards import CARDS, Card
from vidlang.cost.trace import traced_flops

# Cards by what JAX calls their devices; the first that is found holds.
KINDS = (
    (r"H200", "H200"),
    (r"H100.*(HBM3|SXM)", "H100"),
    (r"A100.*40", "A100-40"),
    (r"A100.*80", "A100-80"),
    (r"L40S", "L40S"),
    (r"RTX A5000", "A5000"),
    (r"RTX 4090$", "RTX4090"),
    (r"TPU v4$", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5p?$", "v5p"),
    (r"TPU v6 ?(lite|e)", "v6e"),
)


def card_of(kind: str) -> Card | None:
    """The card that devices of this kind are; None for what has no printed peak here."""
    return next((CARDS[name] for pattern, name in KINDS if re.search(pattern, kind)), None)


def ideal_seconds(step: Any) -> float | None:
    """Seconds of a traced step (its jaxpr) at the peak of all devices here and elsewhere; None if that is unknown."""
    card = card_of(jax.devices()[0].device_kind)
    if card is None:
        return None
    try:
        flops = traced_flops(step)
    except ValueError as error:
        logging.warning("no MFU is written: %s", error)
        return None
    return flops / (card.bfloat16 * jax.device_count())
