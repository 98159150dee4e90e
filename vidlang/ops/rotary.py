"""Rotary positions: pairs of channels turn by an angle that grows with a token's place, each pair at its own speed.

Channel k is paired with channel k + K/2, as in the published language models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Ways to stretch positions over longer texts than were trained on, and what each must be told.
SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def check_scaling(scaling: Mapping[str, Any]) -> None:
    """ValueError for a way of stretching that is unknown or is told too little; the keys are those of config.json."""
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in SCALINGS:
        raise ValueError(f"rotary_scaling has the rope_type {kind!r}; it is one of {', '.join(SCALINGS)}")
    lacking = [name for name in SCALINGS[kind] if name not in scaling]
    if lacking:
        raise ValueError(f"rotary_scaling {kind!r} needs {', '.join(SCALINGS[kind])}; it lacks {', '.join(lacking)}")


def speeds(size: int, base: float, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """Radians a place of each of the size / 2 pairs, float64: from 1 down to nearly 1 / base."""
    plain_K = base ** -(np.arange(0, size, 2) / size)
    if scaling is None:
        return np.asarray(plain_K)
    check_scaling(scaling)
    factor = float(scaling["factor"])
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        return np.asarray(plain_K / factor)
    # Llama 3: pairs that turn seldom within the trained length are slowed, fast ones are not, those between in part.
    length = float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns_K = length * plain_K / (2 * math.pi)
    share_K = np.clip((turns_K - low) / (high - low), 0.0, 1.0)
    return np.asarray(plain_K * (share_K + (1 - share_K) / factor))


def angles(places_BL: jax.Array, speed_K: np.ndarray | jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cosines, sines) float32 [B, L, 1, K/2], for the queries or keys of tokens at these places."""
    turn_BLK = places_BL[..., None].astype(jnp.float32) * jnp.asarray(speed_K, jnp.float32)[None, None]
    return jnp.cos(turn_BLK)[:, :, None], jnp.sin(turn_BLK)[:, :, None]


def rotate(x_BLAK: jax.Array, angle: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Queries or keys, turned; computed in float32."""
    cos, sin = angle
    first, second = jnp.split(x_BLAK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLAK.dtype)
