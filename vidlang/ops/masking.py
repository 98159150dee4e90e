"""Random token dropping: each example keeps a random subset of its tokens, in order, and the rest is never computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain


def keep_count(total: int, mask: float) -> int:
    """How many of `total` tokens remain when the share `mask` is dropped: static, so shapes are."""
    keep = total - round(mask * total)
    if not 0.0 <= mask < 1.0 or keep < 1:
        raise ValueError(
            f"dropping {mask} of {total} tokens leaves {keep}; at least one must remain, so lower the dial mask"
        )
    return keep


def keep_random(key: jax.Array, x_BND: jax.Array, keep: int) -> tuple[jax.Array, jax.Array]:
    """Keeps `keep` random tokens of each example: (x_BMD, their indices kept_BM in ascending order).

    The subset is a uniform one, drawn per example: row b depends on the key and b, never on the tokens.
    """
    batch, total, _ = x_BND.shape
    if not 1 <= keep <= total:
        raise ValueError(f"cannot keep {keep} of {total} tokens")

    def draw(row_key: jax.Array) -> jax.Array:
        order_N = jnp.argsort(jax.random.uniform(row_key, (total,)))
        return jnp.sort(order_N[:keep])

    # Saying that the rows lie where the batch lies keeps the sort and the gather on each device.
    kept_BM = constrain(jax.vmap(draw)(jax.random.split(key, batch)), "batch", None)
    x_BMD = jnp.take_along_axis(x_BND, kept_BM[:, :, None], axis=1)
    return x_BMD, kept_BM
