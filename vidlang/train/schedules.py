"""The learning rate of each step: a linear climb to its peak, and what comes after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SCHEDULES = ("cosine", "constant")

Schedule = Callable[[Any], jax.Array]


def make_schedule(
    name: str, *, peak: float, final: float, warmup: int, total: int, first: float | None = None
) -> Schedule:
    """Learning rate of a step: a linear climb that reaches `peak` at step `warmup - 1`, then cosine or constant.

    The climb begins with `first`, or, where that is None, with the first of `warmup` equal parts of the peak, so that
    the very first step already learns. The cosine would reach `final` at step `total`, one after the last.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown optimizer.schedule {name!r}; there are: {', '.join(SCHEDULES)}")
    if not 0 <= warmup <= total:
        raise ValueError(f"optimizer.warmup lasts {warmup} steps, but the stage only {total}")
    if first is not None and not (warmup and first <= peak):
        raise ValueError(
            f"optimizer.warmup_from is {first}, where a climb of {warmup} steps to {peak} begins; give a warmup, and a "
            "warmup_from that is not above the learning_rate, or leave it out"
        )
    # As floats: an int beyond 32 bits is none that jax takes.
    climb, rest = float(warmup), float(max(total - warmup, 1))
    low = peak / max(climb, 1.0) if first is None else first

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        after = jnp.asarray(peak, jnp.float32)
        if name == "cosine":
            done = jnp.clip((step - climb) / rest, 0.0, 1.0)
            after = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < climb, low + (peak - low) * step / max(climb - 1, 1.0), after)

    return schedule
