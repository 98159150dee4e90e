"""Token dropping: how many, which, in what order, the way back, and that it all stays on each device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import batch_sharding, make_mesh, use_mesh
from vidlang.ops import masking
from vidlang.ops.masking import keep_count

keep_random = jax.jit(masking.keep_random, static_argnums=2)


def tokens(batch: int = 4, total: int = 12, width: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).normal(size=(batch, total, width)), jnp.float32)


@pytest.mark.parametrize(
    ("total", "mask", "keep"),
    [(8, 0.0, 8), (8, 0.75, 2), (1568, 0.75, 392), (10, 0.3, 7), (1568, 0.9, 157), (3, 0.1, 3)],
)
def test_count_is_the_total_less_the_rounded_share(total: int, mask: float, keep: int) -> None:
    assert keep_count(total, mask) == keep


@pytest.mark.parametrize(("total", "mask"), [(4, 0.9), (4, 1.0), (4, -0.5)])
def test_nothing_left_is_an_error(total: int, mask: float) -> None:
    with pytest.raises(ValueError, match=f"dropping {mask} of {total} tokens"):
        keep_count(total, mask)
    with pytest.raises(ValueError, match="cannot keep"):
        keep_random(jax.random.key(0), tokens(), 13)


def test_kept_tokens_are_the_indexed_ones_in_ascending_order() -> None:
    x = tokens()
    kept_x, kept = keep_random(jax.random.key(0), x, 5)
    assert kept_x.shape == (4, 5, 3) and kept.shape == (4, 5)
    assert (np.diff(kept, axis=1) > 0).all() and kept.min() >= 0 and kept.max() < 12
    for row in range(4):
        np.testing.assert_array_equal(kept_x[row], np.asarray(x)[row, np.asarray(kept)[row]])


def test_the_key_alone_decides() -> None:
    kept = keep_random(jax.random.key(0), tokens(), 5)[1]
    np.testing.assert_array_equal(kept, keep_random(jax.random.key(0), -7 * tokens(), 5)[1])
    assert (kept != keep_random(jax.random.key(1), tokens(), 5)[1]).any()
    assert len({tuple(row) for row in np.asarray(kept).tolist()}) > 1, "examples share one draw"


def test_every_token_and_every_pair_is_equally_likely() -> None:
    rows, total, keep = 20_000, 6, 3
    kept = np.asarray(keep_random(jax.random.key(3), jnp.zeros((rows, total, 1)), keep)[1])
    chosen = np.zeros((rows, total))
    np.put_along_axis(chosen, kept, 1, axis=1)
    together = chosen.T @ chosen / rows
    pair = keep * (keep - 1) / (total * (total - 1))
    expected = np.full((total, total), pair) + np.eye(total) * (keep / total - pair)
    # Five standard errors of a proportion.
    np.testing.assert_allclose(together, expected, atol=5 * 0.5 / rows**0.5)


def test_all_tokens_kept_is_the_identity() -> None:
    x = tokens()
    kept_x, kept = keep_random(jax.random.key(0), x, 12)
    np.testing.assert_array_equal(kept_x, x)
    np.testing.assert_array_equal(kept, np.tile(np.arange(12), (4, 1)))


def test_gradient_reaches_kept_tokens_only() -> None:
    gradient = jax.grad(lambda x: keep_random(jax.random.key(0), x, 5)[0].sum())(tokens())
    kept = np.asarray(keep_random(jax.random.key(0), tokens(), 5)[1])
    expected = np.zeros((4, 12, 3))
    for row in range(4):
        expected[row, kept[row]] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_rows_on_many_devices_are_drawn_alike_and_without_talk() -> None:
    x = tokens(batch=16)
    alone = keep_random(jax.random.key(0), x, 5)
    mesh = make_mesh({"data": 8})
    with use_mesh(mesh):
        sharded = jax.device_put(x, batch_sharding(mesh))
        compiled = jax.jit(masking.keep_random, static_argnums=2).lower(jax.random.key(0), sharded, 5).compile()
        found = compiled(jax.random.key(0), sharded)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert other.sharding.shard_shape(other.shape)[0] == 2
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text, f"{collective} in a purely local operation"


GRID = (6, 4, 6)
CELLS = [((2, 2), 1), ((2, 2), 2), ((2, 2), 3), ((2, 3), 4), ((4, 2), 3)]


def shown(kept_BM: jax.Array, grid: tuple[int, int, int] = GRID) -> np.ndarray:
    """Which tokens were kept, [B, T, H, W] of 0 and 1; the indices must be ascending, each once."""
    kept = np.asarray(kept_BM)
    assert (np.diff(kept, axis=1) > 0).all() and kept.min() >= 0 and kept.max() < np.prod(grid)
    flat = np.zeros((len(kept), np.prod(grid)), int)
    np.put_along_axis(flat, kept, 1, axis=1)
    return flat.reshape(len(kept), *grid)


def grid_tokens(batch: int = 4) -> jax.Array:
    return tokens(batch, int(np.prod(GRID)))


def test_tubes_keep_the_same_places_at_all_times() -> None:
    x, keep = grid_tokens(), 7
    kept_x, kept = jax.jit(masking.keep_tube, static_argnums=(2, 3))(jax.random.key(0), x, GRID, keep)
    mask = shown(kept)
    assert (mask == mask[:, :1]).all() and (mask.sum(axis=(2, 3)) == keep).all()
    assert len({row.tobytes() for row in mask}) == len(x), "examples share one draw"
    np.testing.assert_array_equal(kept_x, np.take_along_axis(np.asarray(x), np.asarray(kept)[:, :, None], axis=1))


@pytest.mark.parametrize(("cell", "keep"), CELLS)
def test_cells_take_turns_as_promised(cell: tuple[int, int], keep: int) -> None:
    grid, places = (12, 4, 6), cell[0] * cell[1]
    x = jnp.zeros((16, 12 * 4 * 6, 1))
    kept = jax.jit(masking.keep_cell, static_argnums=(2, 3, 4))(jax.random.key(0), x, grid, keep, cell)[1]
    times, rows, columns = grid
    mask = shown(kept, grid).reshape(16, times, rows // cell[0], cell[0], columns // cell[1], cell[1])
    cells = mask.transpose(0, 1, 2, 4, 3, 5).reshape(16, times, -1, places)
    assert (cells == cells[:, :, :1]).all(), "cells of one example differ"
    one = cells[:, :, 0]
    assert (one.sum(axis=2) == keep).all()
    window = math.ceil(places / keep)
    for first in range(times - window + 1):
        assert one[:, first : first + window].any(axis=1).all(), "a place is not shown in its window"
    if 2 * keep <= places:
        assert not (one[:, 1:] & one[:, :-1]).any(), "a place is shown twice running"
    turn = places // math.gcd(places, keep)
    assert (one[:, :turn].sum(axis=1) == turn * keep // places).all()
    assert len({row.tobytes() for row in one}) > 2, "examples share one order"


@pytest.mark.parametrize("kind", ["tube", "cell"])
def test_every_place_is_equally_likely_at_every_time(kind: str) -> None:
    rows, grid = 4_000, (3, 2, 4)
    kept = jax.jit(masking.keep, static_argnums=(2, 3, 4))(
        jax.random.key(3), jnp.zeros((rows, 24, 1)), grid, 0.75, kind
    )[1]
    np.testing.assert_allclose(shown(kept, grid).mean(axis=0), np.full(grid, 0.25), atol=5 * 0.5 / rows**0.5)


def test_one_door_to_all_kinds() -> None:
    @jax.jit  # one program instead of each operation's own
    def pairs(key: jax.Array, x: jax.Array) -> dict[str, tuple]:
        keep = functools.partial(masking.keep, key, x, GRID)
        return {
            "random": (keep(0.7, "random"), masking.keep_random(key, x, 43)),
            "tube": (keep(0.9, "tube"), masking.keep_tube(key, x, GRID, 2)),
            "cell": (keep(0.75, "cell"), masking.keep_cell(key, x, GRID, 1)),
            "other cell": (keep(0.5, "cell", cell=(2, 3)), masking.keep_cell(key, x, GRID, 3, (2, 3))),
            "all": ([keep(0.0, kind)[0] for kind in masking.KINDS], [x] * 3),
        }

    key = jax.random.key(4)
    for kind, (found, expected) in pairs(key, grid_tokens(2)).items():
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=kind)
    # VideoMAE's own numbers: 20 of 196 places at 8 times.
    many = jax.eval_shape(lambda x: masking.keep(key, x, (8, 14, 14), 0.9, "tube"), jnp.zeros((1, 1568, 1)))
    assert many[1].shape == (1, 8 * 20)


def test_what_was_dropped_and_the_way_back() -> None:
    x, total = tokens(), 12
    kept_x, kept = keep_random(jax.random.key(0), x, 5)
    dropped = np.asarray(masking.complement(kept, total))
    token = jnp.asarray([7.0, 8.0, 9.0])
    back = np.asarray(masking.scatter(kept_x, kept, total, token))
    for row in range(len(x)):
        np.testing.assert_array_equal(dropped[row], np.setdiff1d(np.arange(total), kept[row]))
        np.testing.assert_array_equal(back[row, dropped[row]], np.tile(token, (7, 1)))
        np.testing.assert_array_equal(back[row, kept[row]], np.asarray(x)[row, kept[row]])
    assert masking.complement(jnp.tile(jnp.arange(total), (2, 1)), total).shape == (2, 0)


def test_gradients_of_the_way_back_reach_tokens_and_mask_token() -> None:
    weight = tokens()
    kept_x, kept = keep_random(jax.random.key(0), tokens(), 5)

    def loss(kept_x: jax.Array, token: jax.Array) -> jax.Array:
        return (weight * masking.scatter(kept_x, kept, 12, token)).sum()

    found_x, found_token = jax.jit(jax.grad(loss, argnums=(0, 1)))(kept_x, jnp.ones(3))
    expected = np.take_along_axis(np.asarray(weight), np.asarray(kept)[:, :, None], axis=1)
    np.testing.assert_allclose(found_x, expected)
    np.testing.assert_allclose(found_token, np.asarray(weight).sum((0, 1)) - expected.sum((0, 1)), atol=1e-5)


def test_tubes_cells_and_the_way_back_stay_on_each_device() -> None:
    def all_of_it(key: jax.Array, x: jax.Array, token: jax.Array) -> list[jax.Array]:
        found = []
        for kind in ("tube", "cell"):
            kept_x, kept = masking.keep(key, x, GRID, 0.5, kind)
            found += [kept_x, kept, masking.complement(kept, 144), masking.scatter(kept_x, kept, 144, token)]
        return found

    x, token, key = grid_tokens(16), jnp.ones(3), jax.random.key(0)
    alone = jax.jit(all_of_it)(key, x, token)
    mesh = make_mesh({"data": 8})
    with use_mesh(mesh):
        sharded = jax.device_put(x, batch_sharding(mesh))
        compiled = jax.jit(all_of_it).lower(key, sharded, token).compile()
        found = compiled(key, sharded, token)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert other.sharding.shard_shape(other.shape)[0] == 2
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text, f"{collective} in a purely local operation"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((GRID, 0.5, "block"), "unknown kind of mask 'block'; there are: random, tube, cell"),
        (((6, 4, 5), 0.5, "random"), r"144 tokens are no grid of \(6, 4, 5\)"),
        (((6, 4, 5), 0.5, "tube"), "144 tokens are no grid"),
        (((6, 4, 5), 0.5, "cell"), "144 tokens are no grid"),
        ((GRID, 0.99, "tube"), "dropping 0.99 of 24 tokens"),
        ((GRID, 0.9, "cell"), r"cells of \(2, 2\) cannot drop 0.9 of their 4 places, but 0, 0.25, 0.5, 0.75;"),
        ((GRID, 0.3, "cell"), "cannot drop 0.3"),  # a rounded count would drop a quarter
        ((GRID, 1.0, "cell"), "cannot drop 1.0"),
        (((16, 3, 3), 0.5, "cell"), r"\(2, 2\) .* do not tile the 3 x 3 places"),
    ],
)
def test_a_mask_that_cannot_be_says_so(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        masking.keep(jax.random.key(0), grid_tokens(1), *arguments)


def test_a_way_back_that_cannot_be_says_so() -> None:
    kept = jnp.zeros((2, 3), int)
    with pytest.raises(ValueError, match="3 kept tokens are more than the 2"):
        masking.complement(kept, 2)
    for shapes in [((2, 4, 5), (5,), 8), ((2, 3, 5), (4,), 8), ((2, 3, 5), (5,), 2)]:
        with pytest.raises(ValueError, match="kept tokens .* come with indices"):
            masking.scatter(jnp.zeros(shapes[0]), kept, shapes[2], jnp.zeros(shapes[1]))
    for keep in (0, 25):
        with pytest.raises(ValueError, match=f"cannot keep {keep} of the 24 places"):
            masking.keep_tube(jax.random.key(0), grid_tokens(1), GRID, keep)
    with pytest.raises(ValueError, match="cannot keep 5 of the 4 places of a cell"):
        masking.keep_cell(jax.random.key(0), grid_tokens(1), GRID, 5)
