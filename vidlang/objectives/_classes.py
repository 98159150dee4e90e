"""Cross entropy over the last axis, and whether the right class is among the best."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlang.objectives._rows import wide


def cross_entropy(logits_xC: jax.Array, target_x: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Minus the log probability of each target, of which the share `smoothing` is spread evenly over all classes.

    A negative target asks nothing: what it gives is to be left out. One beyond the last class has no probability; it
    gives NaN, so that a model with too few classes stops at its first step and does not learn something else.
    """
    logits_xC = logits_xC.astype(wide(logits_xC))
    total_x = jax.nn.logsumexp(logits_xC, axis=-1)
    loss_x = total_x - _own(logits_xC, target_x)
    if smoothing:
        loss_x = (1 - smoothing) * loss_x + smoothing * (total_x - logits_xC.mean(axis=-1))
    return jnp.where(target_x < logits_xC.shape[-1], loss_x, jnp.nan)


def among_best(logits_xC: jax.Array, target_x: jax.Array, count: int = 1) -> jax.Array:
    """1.0 where the target is among the `count` highest scores; one that is as high counts as higher."""
    own_x = _own(logits_xC, target_x)
    return ((logits_xC >= own_x[..., None]).sum(axis=-1) <= count).astype(jnp.float32)


def check_smoothing(what: str, smoothing: Any) -> None:
    """ValueError unless it is a share of less than everything."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"{what}: label_smoothing must be from 0 to below 1; found {smoothing}")


def _own(logits_xC: jax.Array, target_x: jax.Array) -> jax.Array:
    """The logit of each target. As a sum it stays on the device where a sharded vocabulary has it."""
    is_own_xC = jax.lax.broadcasted_iota(jnp.int32, logits_xC.shape, logits_xC.ndim - 1) == target_x[..., None]
    return jnp.where(is_own_xC, logits_xC, 0).sum(axis=-1)
