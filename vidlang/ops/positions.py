"""Positions of tokens: fixed ones from sines and cosines, and learned tables carried over to other sizes.

A model's learned positions are two tables, `temporal` [T, D] and `spatial` [N, D], and a checkpoint has them in the
sizes it was trained with. A clip of more frames or pixels needs larger ones, and there are several honest ways to make
them; which one is a choice of the recipe, so it is named here and never made in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.tree import flatten_paths, path_name
from vidlang.ops.tubelets import Size3

Size2 = tuple[int, int]

TIME = ("repeat", "linear", "zeros")
SPACE = ("bilinear", "bicubic")
# The wavelengths of sines and cosines grow from 2 pi to this many times 2 pi.
LONGEST = 10_000.0


def extend_time(table_TD: jax.Array, frames: int, how: str) -> jax.Array:
    """The table of `frames` times, from one of T times.

    "repeat" starts again at the first row when the rows are used up (LongViViT: what is known of 16 frames holds for
    each 16 of 128). "linear" stretches the table over the new times, interpolating between the centres of the old ones,
    the first and last rows holding beyond theirs (AVION, 4 to 16; align_corners=False elsewhere). "zeros" keeps the
    rows and adds zeros. To fewer times, "repeat" and "zeros" keep the first rows and "linear" shrinks the table,
    averaging over what each new time covers.
    """
    if how not in TIME:
        raise ValueError(f"unknown way to extend positions in time {how!r}; there are: {', '.join(TIME)}")
    if table_TD.ndim != 2 or frames < 1 or table_TD.shape[0] < 1:
        raise ValueError(f"a table of times is [T, D] and becomes 1 or more; found {table_TD.shape} to {frames}")
    known, width = table_TD.shape
    if how == "repeat":
        return jnp.take(table_TD, jnp.arange(frames) % known, axis=0)
    if how == "zeros":
        return jnp.pad(table_TD[:frames], [(0, max(0, frames - known)), (0, 0)])
    return _resize(jnp.asarray(table_TD), (frames, width), "linear")


def resize_space(
    table_ND: jax.Array, grid: Size2, new_grid: Size2, how: str = "bilinear", *, extra: int = 0
) -> jax.Array:
    """The table of the places of `new_grid` (rows, columns), from one of `grid`; the picture is the same, cut finer.

    "bilinear" and "bicubic" (Keys' kernel, a = -1/2) interpolate between the centres of the old places; towards fewer
    places both average over what a new one covers, so that nothing fine turns into something coarse that is not there.
    The first `extra` rows are no places (the cls token's, in some checkpoints) and stay as they are.
    """
    if how not in SPACE:
        raise ValueError(f"unknown way to resize positions in space {how!r}; there are: {', '.join(SPACE)}")
    if min(*grid, *new_grid) < 1 or extra < 0:
        raise ValueError(f"grids are (rows, columns) of 1 or more; found {grid}, {new_grid} and {extra} extra rows")
    if table_ND.ndim != 2 or table_ND.shape[0] != extra + math.prod(grid):
        rest = f" and {extra} rows before them" if extra else ""
        raise ValueError(
            f"a table of shape {table_ND.shape} does not hold the {math.prod(grid)} places of a grid {grid}{rest}; "
            "say which grid (rows, columns) it was trained with"
        )
    width = table_ND.shape[1]
    table_ND = jnp.asarray(table_ND)
    places_HWD = _resize(table_ND[extra:].reshape(*grid, width), (*new_grid, width), how)
    return jnp.concatenate([table_ND[:extra], places_HWD.reshape(-1, width)])


def resize_joint(table_ND: jax.Array, grid: Size3, new_grid: Size3, time: str, space: str = "bilinear") -> jax.Array:
    """The table of the places of `new_grid` (times, rows, columns), from one of `grid`: in space, then in time."""
    if table_ND.ndim != 2 or table_ND.shape[0] != (count := math.prod(grid)):
        raise ValueError(f"a table of shape {table_ND.shape} does not hold the {count} places of a grid {grid}")
    by_time_TND = table_ND.reshape(grid[0], -1, table_ND.shape[1])
    if grid[1:] != new_grid[1:]:
        by_time_TND = jax.vmap(lambda table: resize_space(table, grid[1:], new_grid[1:], space))(by_time_TND)
    times_Tx = by_time_TND.reshape(grid[0], -1)
    if grid[0] != new_grid[0]:
        times_Tx = extend_time(times_Tx, new_grid[0], time)
    return times_Tx.reshape(-1, table_ND.shape[1])


def _resize(x: jax.Array, shape: Sequence[int], how: str) -> jax.Array:
    """In float32 at full precision, back in the dtype that came."""
    y = jax.image.resize(x.astype(jnp.float32), shape, how, antialias=True, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def fit_positions(
    params: Any,
    abstract: Any,
    *,
    time: str = "repeat",
    space: str = "bilinear",
    grids: tuple[Size2, Size2] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """A checkpoint's parameters with its position tables in the sizes of another model, and what was changed.

    `abstract` is that model's tree, of arrays or shapes, without boxes. Leaves named `temporal` go through
    `extend_time(how=time)`, those named `spatial` through `resize_space(how=space)` where they differ in their number
    of rows; `grids` is the (rows, columns) of a frame's tokens, (in the checkpoint, in the model), for no number of
    places says how they lie. Everything else is as it came, for `core.tree.merge` to load or to report. `params` may be
    of shapes too: so a recipe is tried before it runs.
    """
    wanted = flatten_paths(abstract)
    changed: list[str] = []

    def fit(path: Sequence[Any], leaf: Any) -> Any:
        name = path_name(path)
        kind = name.rsplit("/", 1)[-1]
        target = wanted.get(name)
        if kind not in ("temporal", "spatial") or target is None or leaf.ndim != 2 or target.ndim != 2:
            return leaf
        (found, width), (rows, target_width) = leaf.shape, target.shape
        regridded = kind == "spatial" and grids is not None and tuple(grids[0]) != tuple(grids[1])
        if width != target_width or (found == rows and not regridded):
            return leaf
        how = time if kind == "temporal" else space
        change = f"{name} {tuple(leaf.shape)} -> {tuple(target.shape)}, {how}"
        changed.append(change)
        try:
            return _fit_one(leaf, rows, kind, how, grids)
        except ValueError as error:
            raise ValueError(f"{change}: {error}") from None

    return jax.tree_util.tree_map_with_path(fit, params), tuple(changed)


def _fit_one(leaf: Any, rows: int, kind: str, how: str, grids: tuple[Size2, Size2] | None) -> Any:
    """One table in its new number of rows; a shape where a shape came."""

    def resized(table: jax.Array) -> jax.Array:
        if kind == "temporal":
            return extend_time(table, rows, how)
        if grids is None:
            raise ValueError(
                "how the places lie is not known; give grids=((rows, columns) in the checkpoint, (rows, columns) here)"
            )
        if math.prod(grids[1]) != rows:
            raise ValueError(f"the model has {rows} places a frame, and a grid {grids[1]} has {math.prod(grids[1])}")
        return resize_space(table, grids[0], grids[1], how)

    return jax.eval_shape(resized, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else resized(leaf)


def sincos_1d(count: int, width: int) -> jax.Array:
    """Fixed positions of `count` tokens in a row, [count, D]: sines in even channels, cosines in odd (VideoMAE).

    VideoMAE counts its tokens through, in time, rows and columns, as if they lay in one line. Channels 2i and 2i + 1
    have the frequency 10000^(-2i/D).
    """
    if count < 1 or width < 2 or width % 2:
        raise ValueError(f"sine and cosine positions need an even width and a token; found {count} of width {width}")
    # Numpy's float64, for sizes are known when a program is built: in float32 a large angle loses digits.
    frequency_K = LONGEST ** (-np.arange(0, width, 2) / width)
    angle_NK = np.arange(count)[:, None] * frequency_K
    return jnp.asarray(np.stack([np.sin(angle_NK), np.cos(angle_NK)], axis=-1).reshape(count, width), jnp.float32)


def sincos_3d(places_N3: np.ndarray, width: int) -> jax.Array:
    """Fixed positions of tokens at (time, row, column), in frames and pixels, whole or not: [N, D] (TubeViT).

    Each of the three axes has a third of the channels, the sines of D // 6 frequencies and then the cosines; a rest of
    D by 6 is zero. Tubes of different sizes and strides, which share no grid, so know where they lie to each other.
    """
    places_N3 = np.asarray(places_N3, np.float64)
    if places_N3.ndim != 2 or places_N3.shape[1] != 3 or width < 6:
        raise ValueError(
            f"places are [N, 3] (time, row, column) and the width 6 or more; found {places_N3.shape} and {width}"
        )
    count = width // 6
    angle_N3K = places_N3[:, :, None] * LONGEST ** (-np.arange(count) / count)
    waves_ND = np.concatenate([np.sin(angle_N3K), np.cos(angle_N3K)], axis=-1).reshape(len(places_N3), 6 * count)
    return jnp.asarray(np.pad(waves_ND, [(0, 0), (0, width - 6 * count)]), jnp.float32)
