"""Rows of a batch some at a time, where each device takes its own: nothing moves between devices for it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from vidlang.core.sharding import active_mesh, batch_ways, constrain


@dataclass(frozen=True)
class Pieces:
    """How rows are cut: each of `ways` devices has `own` rows, of which `size` are in each of `count` pieces."""

    ways: int
    own: int
    size: int

    @classmethod
    def of(cls, batch: int, most: int) -> Pieces:
        """Pieces as even as they come of at most `most` rows of a device, in the active mesh."""
        mesh = active_mesh()
        ways = 1 if mesh is None or batch % batch_ways(mesh) else batch_ways(mesh)
        own = batch // ways
        return cls(ways, own, -(-own // -(-own // max(1, most))))

    @property
    def count(self) -> int:
        """How many pieces there are; the last is filled up with each device's last row."""
        return -(-self.own // self.size)

    def cut(self, x: jax.Array) -> jax.Array:
        """[batch, ...] -> [pieces, rows of a piece, ...]."""
        rest, missing = x.shape[1:], self.count * self.size - self.own
        filled = jnp.pad(x.reshape(self.ways, self.own, *rest), ((0, 0), (0, missing), *((0, 0),) * len(rest)), "edge")
        moved = filled.reshape(self.ways, self.count, self.size, *rest).swapaxes(0, 1)
        return constrain(moved.reshape(self.count, -1, *rest), None, "batch", *[None] * len(rest))

    def join(self, x: jax.Array) -> jax.Array:
        """What was cut, as it was."""
        rest = x.shape[2:]
        moved = x.reshape(self.count, self.ways, self.size, *rest).swapaxes(0, 1)
        kept = moved.reshape(self.ways, self.count * self.size, *rest)[:, : self.own]
        return constrain(kept.reshape(-1, *rest), "batch", *[None] * len(rest))
