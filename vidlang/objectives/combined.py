"""A weighted sum of other objectives, each named: objective = {"name": "combined", "parts": (...)}.

SViTT-Ego, for example, trains by
({"name": "ego_nce", "weight": 1.0}, {"name": "matching", "weight": 1.0}, {"name": "masked_lm", "weight": 1.0}).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.config import check_keys, is_section, load_module
from vidlang.objectives._rows import fixed


@dataclass(frozen=True)
class Part:
    """One objective of the sum, with its options."""

    name: str
    weight: float
    loss: Callable[..., Any]
    options: Mapping[str, Any]


def loss(
    outputs: Any, batch: Mapping[str, Any], *, parts: Sequence[Mapping[str, Any]]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over `parts` of weight times loss.

    A part is a section with the `name` of an objective, a `weight` from 0 on (1 where it says none), and that
    objective's options. Scalars are called part/scalar, and part/loss is its loss without the weight.
    """
    total = jnp.zeros((), jnp.float32)
    scalars: dict[str, jax.Array] = {}
    for part in check(parts):
        value, found = part.loss(outputs=outputs, batch=batch, **part.options)
        total = total + part.weight * value
        scalars |= {f"{part.name}/{name}": scalar for name, scalar in {"loss": value, **found}.items()}
    return total, fixed(scalars)


def check(parts: Sequence[Mapping[str, Any]]) -> list[Part]:
    """The parts; ValueError for all in them that a config alone decides, long before there is a batch."""
    found: list[Part] = []
    for index, section in enumerate(parts):
        part = _part(section, f"objective.parts[{index}]")
        if part.name in (other.name for other in found):
            raise ValueError(
                f"objective.parts has {part.name!r} twice, and their scalars would take each other's names; keep one"
            )
        found.append(part)
    if not any(part.weight > 0 for part in found):
        raise ValueError(
            f"objective.parts holds {'nothing' if not found else 'no weight above 0'}, so there is nothing to learn; "
            'name an objective, as in {"name": "contrastive", "weight": 1.0}'
        )
    return found


def _part(section: Mapping[str, Any], what: str) -> Part:
    if not is_section(section) or not isinstance(dict(section).get("name"), str):
        raise ValueError(f'{what} must be a section with a name, as in {{"name": "contrastive"}}; found {section!r}')
    options = dict(section)
    name, weight = options.pop("name"), options.pop("weight", 1.0)
    if name == "combined":
        raise ValueError(f"{what} is itself 'combined'; put its parts here instead")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"{what}: weight must be a number from 0 on; found {weight!r}")
    function = load_module("objectives", name).loss
    check_keys(function, options, what=what, extra=("outputs", "batch"))
    return Part(name, float(weight), function, options)
