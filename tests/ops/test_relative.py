"""Relative position bias against loops over pairs of tokens, and what its tables keep when they change their grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.relative import RelativeBias, inflate_table_2d, offset_rows, resize_table, table_rows

GRID = (2, 3, 4)
RNG = np.random.default_rng(0)


def table(grid: tuple[int, int, int], heads: int = 2) -> jax.Array:
    return jnp.asarray(RNG.normal(size=(table_rows(grid), heads)), jnp.float32)


def row_of(q: int, k: int, grid: tuple[int, int, int]) -> int:
    """Offsets counted from the most negative, time first; then cls to token, token to cls, cls to cls."""
    rows = table_rows(grid)
    if q < 0 or k < 0:
        return {(True, False): rows - 3, (False, True): rows - 2, (True, True): rows - 1}[q < 0, k < 0]
    row = 0
    for one, other, size in zip(np.unravel_index(q, grid), np.unravel_index(k, grid), grid, strict=True):
        row = row * (2 * size - 1) + int(one) - int(other) + size - 1
    return row


@pytest.mark.slow
def test_rows_are_those_of_a_loop_and_use_the_whole_table() -> None:
    ids = np.arange(-1, 24, dtype=np.int32)
    found = offset_rows(jnp.asarray(ids), jnp.asarray(ids), GRID)
    np.testing.assert_array_equal(found, [[row_of(q, k, GRID) for k in ids] for q in ids])
    assert set(np.unique(found)) == set(range(table_rows(GRID)))


@pytest.mark.slow
def test_bias_of_some_tokens_is_a_part_of_the_whole() -> None:
    ids = jnp.arange(-1, 24, dtype=jnp.int32)[None]
    bias = RelativeBias(table(GRID), ids, GRID)
    whole = np.asarray(bias.dense())
    assert whole.shape == (1, 2, 25, 25)
    # Each example keeps tokens of its own, in any order.
    kept = np.stack([np.concatenate([[0], 1 + RNG.permutation(24)[:7]]) for _ in range(3)])
    found = jax.jit(lambda b: b.dense())(bias.replace(ids_BN=ids[0][kept]))
    for row, some in zip(kept, found, strict=True):
        np.testing.assert_array_equal(some, whole[0][:, row[:, None], row[None]])


@pytest.mark.slow
def test_inflated_table_gives_in_every_pair_of_frames_what_the_flat_one_gives() -> None:
    flat, frames = table((1, 3, 4)), 3
    places = np.concatenate([[-1], np.arange(12)]).astype(np.int32)
    still = RelativeBias(flat, jnp.asarray(places)[None], (1, 3, 4)).dense()[0]
    grid = (frames, 3, 4)
    ids = np.concatenate([[-1], np.arange(36)]).astype(np.int32)
    moving = RelativeBias(inflate_table_2d(flat, frames), jnp.asarray(ids)[None], grid).dense()[0]
    flat_place = np.where(ids < 0, 0, ids % 12 + 1)
    np.testing.assert_array_equal(moving, np.asarray(still)[:, flat_place[:, None], flat_place[None]])


def test_resizing_to_the_same_grid_changes_nothing() -> None:
    old = table(GRID)
    np.testing.assert_allclose(resize_table(old, GRID, GRID), old, rtol=1e-6)


@pytest.mark.parametrize("new_grid", [(4, 3, 4), (8, 5, 3), (1, 2, 7), (3, 3, 4)])
def test_resized_table_is_nearest_in_time_and_linear_in_space(new_grid: tuple[int, int, int]) -> None:
    old = np.asarray(table(GRID), np.float64)
    sizes, new_sizes = ([2 * n - 1 for n in grid] for grid in (GRID, new_grid))
    offsets = old[:-3].reshape(*sizes, 2)
    expected = np.zeros((*new_sizes, 2))
    for t in range(new_sizes[0]):
        # The offset that lies nearest when both tables span the same stretch.
        middles = (np.arange(sizes[0]) + 0.5) / sizes[0]
        nearest = offsets[np.argmin(np.abs(middles - (t + 0.5) / new_sizes[0]))]
        for axis in (0, 1):
            size, new_size = sizes[axis + 1], new_sizes[axis + 1]
            at = (np.arange(new_size) + 0.5) * size / new_size - 0.5
            nearest = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, nearest)
        expected[t] = nearest
    found = np.asarray(resize_table(jnp.asarray(old, jnp.float32), GRID, new_grid))
    np.testing.assert_allclose(found[:-3], expected.reshape(-1, 2), atol=1e-5)
    np.testing.assert_array_equal(found[-3:], old[-3:].astype(np.float32))
    middle, new_middle = ((table_rows(grid) - 3) // 2 for grid in (GRID, new_grid))
    np.testing.assert_allclose(found[new_middle], old[middle], rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    bias = RelativeBias(table(GRID), jnp.zeros((2, 9), jnp.int32), GRID)
    bias.check(2, 9, 2)
    with pytest.raises(ValueError, match=r"2, 3, 4. and 3 heads is .108, 3.; found .108, 2."):
        bias.check(2, 9, 3)
    with pytest.raises(ValueError, match=r"places of 8 tokens .* int32 .2, 8. or .1, 8.; found int32 .2, 9."):
        bias.check(2, 8, 2)
    with pytest.raises(ValueError, match="found float32"):
        bias.replace(ids_BN=jnp.zeros((2, 9))).check(2, 9, 2)
    with pytest.raises(ValueError, match="has 108 rows; found"):
        resize_table(table((1, 3, 4)), GRID, GRID)
    with pytest.raises(ValueError, match="2-D bias table .* and 0 frames"):
        inflate_table_2d(table((1, 3, 4)), 0)
