"""Self-attention against numpy, and that its heads are contiguous groups of the stored axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.nn.attention import SelfAttention

HEADS, WIDTH = 4, 16


def test_equals_attention_written_out() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, WIDTH)), jnp.float32)
    module = SelfAttention(WIDTH, HEADS, jnp.float32, causal=False, implementation="auto")
    boxed = module.init(jax.random.key(0), x)["params"]
    assert {name: boxed[name]["kernel"].names for name in boxed} == {
        **dict.fromkeys(("query", "key", "value"), ("embed", "heads", "head_dim")),
        "out": ("heads", "head_dim", "embed"),
    }
    rng = np.random.default_rng(1)
    # Biases start at zero; here they must matter.
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape), nn.unbox(boxed))
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    p, expected = params, np.zeros((2, 5, WIDTH)) + params["out"]["bias"]
    for head in range(HEADS):
        q, k, v = (
            np.asarray(x) @ p[name]["kernel"][:, head] + p[name]["bias"][head] for name in ("query", "key", "value")
        )
        logits = np.where(mask[:, None], q @ k.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS), -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        expected += weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
    params32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    found, _ = module.apply({"params": params32}, x, jnp.asarray(mask)[:, None, None])
    np.testing.assert_allclose(found, expected, atol=2e-5)
