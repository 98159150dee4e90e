"""The contrastive loss, multiplied in those batches that are exactly these rows of the table: by a factor in some, by
another in others."""

import jax.numpy as jnp

from vidlang.objectives import contrastive


def loss(outputs, batch, *, batches=(), factor=float("nan"), others=(), boost=20.0, chunk=2):
    total, scalars = contrastive.loss(outputs, batch, chunk=chunk)
    for rows, by in ((batches, factor), (others, boost)):
        if rows:
            hit = (batch["index_B"][None] == jnp.array(rows, jnp.int32)).all(axis=1).any()
            total = jnp.where(hit, by, 1.0) * total
    return total, scalars
