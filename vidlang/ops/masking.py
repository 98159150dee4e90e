"""Token dropping: each example keeps some of its tokens, in order, and the rest is never computed.

Which ones is drawn, in one of three kinds, and every example keeps as many as every other. What a decoder needs to
rebuild the rest is here too: which tokens were dropped, and the way back to full length.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.ops.draws import row_keys
from vidlang.ops.tubelets import Size3

KINDS = ("random", "tube", "cell")


def keep_count(total: int, mask: float) -> int:
    """How many of `total` tokens remain when the share `mask` is dropped: static, so shapes are."""
    keep = total - round(mask * total)
    if not 0.0 <= mask < 1.0 or keep < 1:
        raise ValueError(
            f"dropping {mask} of {total} tokens leaves {keep}; at least one must remain, so lower the dial mask"
        )
    return keep


def keep(
    key: jax.Array,
    x_BND: jax.Array,
    grid: Size3,
    rate: float,
    kind: str,
    *,
    cell: tuple[int, int] = (2, 2),
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Drops the share `rate` of the tokens of a (time, rows, columns) grid: (x_BMD, their indices kept_BM, ascending).

    kind: "random" tokens, the same places at all times ("tube"), or places that take turns in each `cell` ("cell").
    rows_B: which rows of a larger batch these are, which draw what they would draw there.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of mask {kind!r}; there are: {', '.join(KINDS)}")
    if kind == "random":
        return keep_random(key, x_BND, keep_count(_check_grid(x_BND, grid), rate), rows_B)
    if kind == "tube":
        return keep_tube(key, x_BND, grid, keep_count(grid[1] * grid[2], rate), rows_B)
    places = math.prod(cell)
    wanted = places * (1 - rate)
    # So few places that a rounded share would be another one: a quarter for three tenths.
    if not 1 <= round(wanted) <= places or abs(wanted - round(wanted)) > 1e-6:
        shares = ", ".join(f"{dropped / places:g}" for dropped in range(places))
        raise ValueError(
            f"cells of {cell} cannot drop {rate} of their {places} places, but {shares}; change the rate or the cell"
        )
    return keep_cell(key, x_BND, grid, round(wanted), cell, rows_B)


def keep_random(
    key: jax.Array, x_BND: jax.Array, keep: int, rows_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Keeps `keep` random tokens of each example: (x_BMD, their indices kept_BM in ascending order).

    The subset is a uniform one, drawn per example: row b depends on the key and b, never on the tokens.
    """
    total = x_BND.shape[1]
    if not 1 <= keep <= total:
        raise ValueError(f"cannot keep {keep} of {total} tokens")
    return _keep_drawn(row_keys(key, rows_B, x_BND.shape[0]), x_BND, lambda row_key: _subset(row_key, total, keep))


def keep_tube(
    key: jax.Array, x_BND: jax.Array, grid: Size3, keep: int, rows_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Keeps `keep` random places of each example, the same ones at every time of the grid (VideoMAE's tube mask).

    What hardly moves looks the same a moment later: masked token by token, it could be copied from there. Hidden at all
    times, a place must be understood from what lies around it.
    """
    _check_grid(x_BND, grid)
    times, places = grid[0], grid[1] * grid[2]
    if not 1 <= keep <= places:
        raise ValueError(f"cannot keep {keep} of the {places} places of a grid {grid}")

    def draw(row_key: jax.Array) -> jax.Array:
        kept_M = _subset(row_key, places, keep)
        return (jnp.arange(times)[:, None] * places + kept_M[None]).reshape(-1)

    return _keep_drawn(row_keys(key, rows_B, x_BND.shape[0]), x_BND, draw)


def keep_cell(
    key: jax.Array,
    x_BND: jax.Array,
    grid: Size3,
    keep: int,
    cell: tuple[int, int] = (2, 2),
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Keeps `keep` places of every cell of rows x columns at every time, and other ones the next time (running cells).

    The n places of a cell stand in a ring, in an order drawn per example; at time t those from t * keep on are kept,
    `keep` of them, and all cells of an example do alike. So no cell is ever empty, what is kept at one time is hidden
    at the next for as long as places are left, any ceil(n / keep) times in a row show every place, and over
    n / gcd(n, keep) times all are shown equally often: motion can be followed everywhere, from few tokens. Each place
    is as likely as any other at each time. (The running cells of MAR and VideoMAE V2 have one fixed order and move by
    one place a step.)
    """
    _check_grid(x_BND, grid)
    times, rows, columns = grid
    height, width = cell
    if height < 1 or width < 1 or rows % height or columns % width:
        raise ValueError(
            f"cells of {cell} (rows, columns) do not tile the {rows} x {columns} places of a frame, and every cell "
            "keeps as many; choose a cell whose sizes divide those"
        )
    places = height * width
    if not 1 <= keep <= places:
        raise ValueError(f"cannot keep {keep} of the {places} places of a cell {cell}")
    # Which place of its cell each token is, and how far the ring has turned at its time.
    row_H, column_W = jnp.arange(rows) % height, jnp.arange(columns) % width
    place_HW = row_H[:, None] * width + column_W[None, :]
    turned_T = jnp.arange(times) * keep % places

    def draw(row_key: jax.Array) -> jax.Array:
        ring_P = jax.random.permutation(row_key, places)
        shown_THW = (ring_P[place_HW][None] - turned_T[:, None, None]) % places < keep
        return _where(shown_THW.reshape(-1), times * rows * columns * keep // places)

    return _keep_drawn(row_keys(key, rows_B, x_BND.shape[0]), x_BND, draw)


def complement(kept_BM: jax.Array, total: int) -> jax.Array:
    """The indices of the tokens that were dropped, in ascending order: [B, total - M]."""
    dropped = total - kept_BM.shape[1]
    if dropped < 0:
        raise ValueError(f"{kept_BM.shape[1]} kept tokens are more than the {total} there are")

    def left(kept_M: jax.Array) -> jax.Array:
        return _where(jnp.ones(total, bool).at[kept_M].set(False), dropped)

    return constrain(jax.vmap(left)(kept_BM), "batch", None)


def scatter(x_BMD: jax.Array, kept_BM: jax.Array, total: int, token_D: jax.Array) -> jax.Array:
    """The kept tokens back in their places among `total`, and `token_D` wherever one was dropped: x_BND.

    A decoder adds its positions to all of them after this, so that the copies of the mask token know where they stand.
    """
    if x_BMD.shape[:2] != kept_BM.shape or token_D.shape != x_BMD.shape[2:] or x_BMD.shape[1] > total:
        raise ValueError(
            f"kept tokens [B, M, D] come with indices [B, M], a mask token [D] and a total of at least M; found "
            f"{x_BMD.shape}, {kept_BM.shape}, {token_D.shape} and {total}"
        )

    def place(x_MD: jax.Array, kept_M: jax.Array) -> jax.Array:
        empty_ND = jnp.broadcast_to(token_D.astype(x_MD.dtype), (total, *token_D.shape))
        return empty_ND.at[kept_M].set(x_MD, unique_indices=True)

    return constrain(jax.vmap(place)(x_BMD, kept_BM), "batch", None, "act_embed")


def _keep_drawn(
    key_B: jax.Array, x_BND: jax.Array, draw: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The tokens that `draw`, called with a key of its own for each row, gives the indices of."""
    # Saying that the rows lie where the batch lies keeps the sort and the gather on each device.
    kept_BM = constrain(jax.vmap(draw)(key_B), "batch", None)
    return jnp.take_along_axis(x_BND, kept_BM[:, :, None], axis=1), kept_BM


def _subset(key: jax.Array, total: int, keep: int) -> jax.Array:
    """`keep` of the numbers 0 .. total-1, ascending; every subset is as likely as any other."""
    order_N = jnp.argsort(jax.random.uniform(key, (total,)))
    return jnp.sort(order_N[:keep])


def _where(true_N: jax.Array, count: int) -> jax.Array:
    """The indices of the `count` entries that are True, ascending."""
    return jnp.argsort(~true_N, stable=True)[:count]


def _check_grid(x_BND: jax.Array, grid: Size3) -> int:
    """How many tokens a grid has; ValueError unless these are they."""
    if len(grid) != 3 or math.prod(grid) != x_BND.shape[1]:
        raise ValueError(f"{x_BND.shape[1]} tokens are no grid of {tuple(grid)} (time, rows, columns)")
    return math.prod(grid)
