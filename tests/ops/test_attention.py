"""Both attentions against softmax written out in numpy, their gradients against each other, and the switch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.attention import attend, fused_backend

B, N, A, K = 2, 6, 3, 8
FULL = (B, A, N, N)


def qkv(dtype: jnp.dtype = jnp.float32, keys: int = N) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, n, A, K)), dtype) for n in (N, keys, keys))
    return q, k, v


def by_hand(q: jax.Array, k: jax.Array, v: jax.Array, allowed: np.ndarray) -> np.ndarray:
    """One query at a time over the keys it may see, in float64; zeros when there are none."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, n, a in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(allowed[b, a, n])
        if len(seen):
            logits = k[b, seen, a] @ q[b, n, a] / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max())
            out[b, n, a] = (weights / weights.sum()) @ v[b, seen, a]
    return out


def masks() -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(0)
    padding = np.arange(N)[None, :] < np.array([N, 2])[:, None]
    some = rng.random(FULL) < 0.5
    some[1, 2, 3] = False  # a query without keys
    return {
        "none": None,
        "random": some,
        "padding": padding[:, None, None, :],
        "all_padding": np.array([True, False])[:, None, None, None].repeat(N, -1),
        "per_query": rng.random((1, 1, N, N)) < 0.6,
    }


CASES = [(name, causal) for name in masks() for causal in (False, True)]


def in_case(case: tuple[str, bool], implementation: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    mask, causal = masks()[case[0]], case[1]
    mask_BANS = None if mask is None else jnp.asarray(mask)
    return attend(q, k, v, mask_BANS=mask_BANS, causal=causal, implementation=implementation)


@pytest.mark.parametrize("implementation", ["reference", "fused", "auto"])
def test_equals_softmax_by_hand(implementation: str) -> None:
    found = jax.jit(lambda *args: [in_case(case, implementation, *args) for case in CASES])(*qkv())
    for o_BNAK, (name, causal) in zip(found, CASES, strict=True):
        mask = masks()[name]
        allowed = np.broadcast_to(True if mask is None else mask, FULL) & (np.tri(N, dtype=bool) if causal else True)
        np.testing.assert_allclose(o_BNAK, by_hand(*qkv(), allowed), atol=2e-6, err_msg=f"{name} causal={causal}")


def test_gradients_agree_and_are_finite() -> None:
    weight = jnp.asarray(np.random.default_rng(5).normal(size=(B, N, A, K)), jnp.float32)

    # A copy of the inputs for every mask, so that one backward pass gives the gradients of each.
    copies = tuple(jnp.stack([x] * len(CASES)) for x in qkv())

    def loss(implementation: str, copies: tuple[jax.Array, ...]) -> jax.Array:
        outputs = [in_case(case, implementation, *(x[i] for x in copies)) for i, case in enumerate(CASES)]
        return sum((weight * o_BNAK).sum() for o_BNAK in outputs)

    gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    reference, fused = (list(zip(*gradient(name, copies), strict=True)) for name in ("reference", "fused"))
    for case, *pair in zip(CASES, reference, fused, strict=True):
        for one, other in zip(*pair, strict=True):
            assert np.isfinite(one).all() and np.abs(one).max() > 0, case
            np.testing.assert_allclose(one, other, atol=2e-6, err_msg=str(case))


def test_more_keys_than_queries() -> None:
    q, k, v = qkv(keys=9)
    expected = by_hand(q, k, v, np.ones((B, A, N, 9), bool))
    for implementation in ("reference", "fused"):
        np.testing.assert_allclose(attend(q, k, v, implementation=implementation), expected, atol=2e-6)


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_softmax_is_float32_in_bfloat16(implementation: str) -> None:
    # Logits near 300 that differ by less than bfloat16 resolves there: a half-precision softmax sees them as equal.
    keys = np.full((1, 2, 1, 8), 6.0)
    keys[0, 1, 0, 0] += 2**-5
    q, k = jnp.asarray(np.full((1, 1, 1, 8), 16.0), jnp.bfloat16), jnp.asarray(keys, jnp.bfloat16)
    v = jnp.asarray(np.array([0.0, 1.0]).reshape(1, 2, 1, 1).repeat(8, -1), jnp.bfloat16)
    difference = 16 * 2**-5 / np.sqrt(8)
    found = attend(q, k, v, implementation=implementation)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 1 / (1 + np.exp(-difference)), rtol=1e-2)


def test_bfloat16_is_close_to_float32() -> None:
    expected = by_hand(*qkv(), np.ones(FULL, bool))
    for implementation in ("reference", "fused"):
        found = attend(*qkv(jnp.bfloat16), implementation=implementation)
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"implementation": "flash"}, "unknown attention 'flash'; there are: auto, fused, reference"),
        ({"mask_BANS": jnp.zeros((B, 1, 1, N))}, "boolean"),
        ({"mask_BANS": jnp.ones((B, N), bool)}, "boolean"),
        ({"mask_BANS": jnp.ones((B, 1, 1, N + 1), bool)}, "boolean"),
        ({"q": jnp.ones((B, N, A, K), jnp.bfloat16)}, "one floating dtype; found bfloat16, float32"),
        ({"q": jnp.ones((B, N, A, K + 1))}, "differ in batch, heads or head size"),
        ({"q": jnp.ones((N, A, K))}, "takes q"),
        ({"q": jnp.ones((B, N + 1, A, K)), "causal": True}, "as many queries as keys; found 7 and 6"),
    ],
)
def test_a_request_that_cannot_be_served_says_so(changes: dict, words: str) -> None:
    q, k, v = qkv()
    options = {"q": q, "implementation": "fused"} | changes
    with pytest.raises(ValueError, match=words):
        attend(options.pop("q"), k, v, **options)


def test_cudnn_only_where_it_serves() -> None:
    good = {"platform": "gpu", "dtype": jnp.dtype(jnp.bfloat16), "head_size": 64, "masked": False}
    assert fused_backend(**good) == "cudnn"
    for change in (
        {"platform": "cpu"},
        {"platform": "tpu"},
        {"dtype": jnp.dtype(jnp.float32)},
        {"head_size": 36},
        {"head_size": 256},
        {"masked": True},
    ):
        assert fused_backend(**(good | change)) == "xla", change
