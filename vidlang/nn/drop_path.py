"""Stochastic depth: in training, a row leaves out branches of some layers, and the others count the more for it.

The rate rises linearly over the layers, from 0 in the first to `spec.drop_path` in the last. What a row drops is drawn
from a key of its own, so it drops the same in whatever part of the batch it stands. The frames of a clip that are
encoded one by one are one row here: they drop together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlang.nn.layouts import GRIDDED, MLP, SPACE, TIME
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.draws import row_keys


def branches(layout: str) -> tuple[str, ...]:
    """Those of a block that are dropped by themselves. In "divided", time goes with space, through which it passes."""
    return (SPACE, MLP, TIME) if layout in GRIDDED and layout != "divided" else (SPACE, MLP)


def draw_paths(
    key: jax.Array, layer: jax.Array, spec: TransformerSpec, rows_B: jax.Array | None, batch: int
) -> jax.Array:
    """What each branch of a layer is multiplied by in each row, [P, B]: 0, or as much as keeps the expectation."""
    rate = spec.drop_path * layer.astype(jnp.float32) / (spec.layers - 1)
    keys_B = row_keys(jax.random.fold_in(key, layer), rows_B, batch)
    drawn_BP = jax.vmap(lambda key: jax.random.uniform(key, (len(branches(spec.layout)),)))(keys_B)
    return jnp.where(drawn_BP < rate, 0.0, 1.0 / (1.0 - rate)).T


def drop(y_BND: jax.Array, path_B: jax.Array) -> jax.Array:
    """A branch times its rows' factors, which get no gradient."""
    factor_B11 = jax.lax.stop_gradient(path_B)[:, None, None]
    return (y_BND.astype(jnp.float32) * factor_B11).astype(y_BND.dtype)
