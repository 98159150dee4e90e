"""Relative position bias over space and time, as BEiT has it over space: one number a head for each offset.

The table's rows are the offsets (time, row, column) of a query from a key in a grid of T x H x W tokens, row-major, and
three more: cls to a token, a token to cls, cls to cls. Tokens carry their place in the grid, so the bias of any tokens
in any order can be looked up: after masking or pruning, and for a block of tokens at a time.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

Grid = tuple[int, int, int]
# Rows after the offsets.
SPECIAL = 3


@flax.struct.dataclass
class RelativeBias:
    """A table [rows, A], the places of tokens in the grid, and the grid; a place of -1 is the cls token.

    ids_BN: int32 [B, N], or [1, N] where all examples hold the same tokens.
    """

    table_RA: jax.Array
    ids_BN: jax.Array
    grid: Grid = flax.struct.field(pytree_node=False)

    def between(self, query_ids_BN: jax.Array, key_ids_BS: jax.Array) -> jax.Array:
        """The bias of queries to keys at these places: [B or 1, A, N, S], in the table's dtype."""
        return look_up(self.table_RA, offset_rows(query_ids_BN, key_ids_BS, self.grid))

    def dense(self) -> jax.Array:
        """The bias of all tokens to all tokens, [B or 1, A, N, N]: for dense attention."""
        return self.between(self.ids_BN, self.ids_BN)

    def check(self, batch: int, tokens: int, heads: int) -> None:
        """ValueError unless table and places fit attention of this size."""
        rows = table_rows(self.grid)
        if self.table_RA.shape != (rows, heads):
            raise ValueError(
                f"the bias table of the grid {self.grid} and {heads} heads is {(rows, heads)}; "
                f"found {self.table_RA.shape}: resize_table changes the grid of a table"
            )
        ids_BN = self.ids_BN
        if ids_BN.shape not in ((batch, tokens), (1, tokens)) or ids_BN.dtype != jnp.int32:
            raise ValueError(
                f"a bias needs the places of {tokens} tokens in the grid, int32 {(batch, tokens)} or {(1, tokens)}; "
                f"found {ids_BN.dtype} {ids_BN.shape}"
            )


def table_rows(grid: Grid) -> int:
    """How many rows a table for this grid has."""
    frames, height, width = grid
    return (2 * frames - 1) * (2 * height - 1) * (2 * width - 1) + SPECIAL


def offset_rows(query_ids_xN: jax.Array, key_ids_xS: jax.Array, grid: Grid) -> jax.Array:
    """The table's row for each query and key, int32 [x, N, S]; x are any leading axes that both have."""
    q, k = query_ids_xN[..., :, None], key_ids_xS[..., None, :]
    _, height, width = grid
    strides = (height * width, width, 1)
    row = jnp.zeros((), jnp.int32)
    for size, stride in zip(grid, strides, strict=True):
        offset = (q // stride) % size - (k // stride) % size
        row = row * (2 * size - 1) + offset + size - 1
    to_token, to_cls, cls_to_cls = range(table_rows(grid) - SPECIAL, table_rows(grid))
    row = jnp.where(q < 0, to_token, row)
    return jnp.where(k < 0, jnp.where(q < 0, cls_to_cls, to_cls), row)


def look_up(table_RA: jax.Array, row_Bx: jax.Array) -> jax.Array:
    """Rows of the table with the heads as second axis: [B, x] -> [B, A, x]."""
    table_AR = table_RA.T
    # Heads in front within the look-up itself: the result is large, and turning it would cost as much again.
    return jax.vmap(lambda row_x: table_AR.at[:, row_x].get(mode="promise_in_bounds"))(row_Bx)


def inflate_table_2d(table_RA: jax.Array, frames: int) -> jax.Array:
    """A table for `frames` x H x W that gives at every offset in time what a BEiT table gives in space."""
    if table_RA.ndim != 2 or table_RA.shape[0] <= SPECIAL or frames < 1:
        raise ValueError(
            f"a 2-D bias table is [(2H - 1)(2W - 1) + 3, A], for 1 frame or more; "
            f"found {table_RA.shape} and {frames} frames"
        )
    offsets_RA, special_RA = table_RA[:-SPECIAL], table_RA[-SPECIAL:]
    return jnp.concatenate([jnp.tile(offsets_RA, (2 * frames - 1, 1)), special_RA])


def resize_table(table_RA: jax.Array, grid: Grid, new_grid: Grid) -> jax.Array:
    """The table for another grid over the same stretch of space and time: nearest offset in time, linear in space.

    Offset 0 stays offset 0, and the rows of cls stay as they are.
    """
    if table_RA.ndim != 2 or table_RA.shape[0] != table_rows(grid):
        raise ValueError(f"the bias table of the grid {grid} has {table_rows(grid)} rows; found {table_RA.shape}")
    heads = table_RA.shape[1]
    old, new = (tuple(2 * size - 1 for size in sizes) for sizes in (grid, new_grid))
    offsets = table_RA[:-SPECIAL].reshape(*old, heads)
    # Middles of new cells in the old row; sizes are odd, so no middle falls on an edge and ends mirror each other.
    time = (2 * jnp.arange(new[0]) + 1) * old[0] // (2 * new[0])
    offsets = offsets[time]
    offsets = jax.image.resize(offsets, (*new, heads), "linear", antialias=False)
    return jnp.concatenate([offsets.reshape(-1, heads).astype(table_RA.dtype), table_RA[-SPECIAL:]])
