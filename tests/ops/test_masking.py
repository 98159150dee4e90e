"""Random token dropping: how many, which, in what order, and that it stays on each device."""

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
