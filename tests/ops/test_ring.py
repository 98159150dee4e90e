"""Attention in a ring of devices against the plain form on one: masks, biases, order, and any number of tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import constrain, make_mesh, use_mesh
from vidlang.ops.attention import attend
from vidlang.ops.ring import ring_attention

B, A, K = 2, 2, 4
RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def case(queries: int, keys: int, **more: Any) -> dict[str, Any]:
    return {"q": normal(B, queries, A, K), "k": normal(B, keys, A, K), "v": normal(B, keys, A, K), **more}


def some(*shape: int) -> jax.Array:
    mask = RNG.random(shape) < 0.6
    mask[-1, -1, -1] = False  # a query without keys, or a head
    return jnp.asarray(mask)


CASES = {
    "plain": case(8, 8),
    "not divided": case(9, 9),
    "fewer than devices": case(3, 3),
    "other keys": case(6, 11),
    "order": case(9, 9, causal=True),
    "mask": case(9, 9, mask=some(B, A, 9, 9)),
    "padding": case(9, 9, mask=jnp.asarray(np.arange(9)[None] < np.array([[9], [4]]))[:, None, None]),
    "bias": case(9, 9, bias=normal(1, A, 9, 9)),
    "all": case(7, 7, mask=some(1, 1, 7, 7), bias=normal(B, 1, 1, 7), causal=True),
}


def run(attention: Any, name: str) -> Any:
    """Output and gradients of one case."""
    given = CASES[name]
    arrays = {key: given[key] for key in ("q", "k", "v", "bias") if key in given}

    def output(arrays: dict[str, jax.Array]) -> jax.Array:
        masks = {"mask_BANS": given.get("mask"), "bias_BANS": arrays.get("bias")}
        return attention(arrays["q"], arrays["k"], arrays["v"], **masks, causal=given.get("causal", False))

    o, pull = jax.vjp(output, arrays)
    return o, pull(jnp.cos(jnp.arange(o.size).reshape(o.shape)))[0]


@pytest.fixture(scope="module")
def expected() -> Any:
    def reference(*qkv: jax.Array, **more: Any) -> jax.Array:
        return attend(*qkv, **more, implementation="reference")

    return jax.jit(lambda: {name: run(reference, name) for name in CASES})()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [256, 2])
@pytest.mark.parametrize("sizes", [{"context": 8}, {"data": 2, "tensor": 2, "context": 2}], ids=str)
def test_a_ring_of_devices_computes_what_one_does(sizes: dict[str, int], chunk: int, expected: Any) -> None:
    def ring(*qkv: jax.Array, **more: Any) -> jax.Array:
        return ring_attention(*qkv, **more, chunk=chunk)

    for name in CASES:
        # Programs of their own: rings that do not wait for each other can take each other's threads on fake devices.
        with use_mesh(make_mesh(sizes)):
            found = jax.jit(lambda name=name: run(ring, name))()
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(one, other, atol=5e-6, err_msg=name)
            assert np.abs(one).max() > 0, name


def test_without_other_devices_it_is_chunked_attention(expected: Any) -> None:
    np.testing.assert_allclose(run(ring_attention, "not divided")[0], expected["not divided"][0], atol=5e-6)


def test_a_half_precision_ring_sums_in_float32() -> None:
    """Gradients of values, all of one sign, come from eight devices: summed in bfloat16, each sum would be rounded."""
    q, k, v = (normal(2, 64, 2, 8).astype(jnp.bfloat16) for _ in range(3))

    def grads(attention: Any, *qkv: jax.Array) -> Any:
        return jax.grad(lambda v: attention(*qkv[:2], v).astype(jnp.float32).sum())(qkv[2])

    exact = grads(lambda *x: attend(*x, implementation="reference"), *(x.astype(jnp.float32) for x in (q, k, v)))
    with use_mesh(make_mesh({"context": 8})):
        found = jax.jit(lambda *x: grads(ring_attention, *x))(q, k, v)
    assert str(found.dtype) == "bfloat16"
    error = np.sqrt(np.mean((np.asarray(found, np.float32) / np.asarray(exact) - 1) ** 2))
    assert error < 0.002, "one rounding of the result is 0.0016; of each of the eight sums, 0.003"


def test_no_device_holds_all_keys_or_more_than_its_share_of_weights() -> None:
    tokens, ways = 1024, 4
    x = jax.ShapeDtypeStruct((2, tokens, 2, 16), jnp.float32)

    def step(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        q, k, v = (constrain(x, "batch", "tokens", None, None) for x in (q, k, v))
        o, pull = jax.vjp(lambda *qkv: attend(*qkv, spread=True), q, k, v)
        return pull(o)

    with use_mesh(make_mesh({"data": 2, "context": ways})):
        compiled = jax.jit(step).lower(x, x, x).compile()
    text = compiled.as_text()
    assert "collective-permute" in text and "all-gather(" not in text.split("ENTRY")[0]
    whole = jax.jit(lambda *x: jax.vjp(lambda *y: attend(*y, implementation="chunked"), *x)[1](x[0]))
    alone = whole.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes
    assert compiled.memory_analysis().temp_size_in_bytes < alone / 2
