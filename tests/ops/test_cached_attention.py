"""One new token against a cache gets what a float64 loop over heads gives it; windows and caps are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.cached_attention import attend_to_cache, cap, capped_attention, causal_mask

BATCH, PLACES, SIZE = 3, 6, 4
RNG = np.random.default_rng(0)


def attended(query, keys, values, limit):
    """What one head of one token gets, in float64."""
    logits = np.asarray(keys, np.float64) @ np.asarray(query, np.float64) / np.sqrt(SIZE)
    logits = limit * np.tanh(logits / limit) if limit else logits
    weights = np.exp(logits - logits.max())
    return weights / weights.sum() @ np.asarray(values, np.float64)


@pytest.mark.parametrize("limit", [0.0, 0.7])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (4, 1)])
def test_shared_keys_are_those_of_their_group(heads, groups, limit):
    query = RNG.normal(size=(BATCH, heads, SIZE)).astype(np.float32)
    new = RNG.normal(size=(2, BATCH, groups, SIZE)).astype(np.float32)
    old = RNG.normal(size=(2, BATCH, PLACES, groups, SIZE)).astype(np.float32)
    seen = RNG.random((BATCH, PLACES)) < 0.5
    seen[1] = False  # the first token of a text sees itself only
    found = jax.jit(attend_to_cache, static_argnums=4)(query, tuple(new), tuple(old), seen, limit)
    assert found.shape == (BATCH, heads, SIZE)
    for row in range(BATCH):
        for head in range(heads):
            group = head // (heads // groups)
            keys, values = (np.vstack([old[i, row, seen[row], group], new[i, row, group][None]]) for i in (0, 1))
            expected = attended(query[row, head], keys, values, limit)
            np.testing.assert_allclose(found[row, head], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], np.repeat(new[1, 1], heads // groups, axis=0), rtol=1e-5)


@pytest.mark.slow
def test_what_lies_at_places_that_are_not_seen_does_not_matter():
    query, new = RNG.normal(size=(1, 2, SIZE)), RNG.normal(size=(2, 1, 2, SIZE))
    old, seen = RNG.normal(size=(2, 1, PLACES, 2, SIZE)), np.arange(PLACES)[None] < 3
    other = np.where(seen[..., None, None], old, 1e6)
    one, two = (attend_to_cache(*jax.tree.map(jnp.float32, (query, tuple(new), tuple(x))), seen) for x in (old, other))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("window", [0, 1, 3, 9])
def test_a_window_counts_the_token_itself(window):
    expected = [[s <= n and (not window or n - s < window) for s in range(5)] for n in range(5)]
    np.testing.assert_array_equal(causal_mask(5, window)[0, 0], expected)
    np.testing.assert_array_equal(jax.jit(causal_mask, static_argnums=0)(5, jnp.int32(window))[0, 0], expected)


def test_capped_logits_are_those_of_the_formula():
    query, keys, values = RNG.normal(size=(3, 2, 5, 3, SIZE)).astype(np.float32) * 2
    mask = causal_mask(5, 2)
    found = capped_attention(query, keys, values, mask, 0.5)
    for row, place, head in np.ndindex(2, 5, 3):
        first = max(place - 1, 0)
        seen = slice(first, place + 1)
        expected = attended(query[row, place, head], keys[row, seen, head], values[row, seen, head], 0.5)
        np.testing.assert_allclose(found[row, place, head], expected, rtol=1e-4, atol=1e-5)


def test_a_cap_is_smooth_and_its_absence_is_exact():
    x = np.array([-100.0, -0.01, 0.0, 0.01, 100.0], np.float32)
    np.testing.assert_allclose(cap(x, 3.0), [-3, -0.01, 0, 0.01, 3], rtol=1e-4)
    assert cap(x, 0.0) is x
