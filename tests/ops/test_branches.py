"""A switch is lax.switch in values and gradients, and its derivative holds nothing of branches that did not run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.branches import switch

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32), "shift": jnp.float32(0.3)}
X, NUMBERS = jnp.asarray(RNG.normal(size=(4, 8)), jnp.float32), jnp.array([2, 0, 3, 1])
BRANCHES = [
    lambda p, x, n: (jnp.sin(x[n] @ p["w"]) + p["shift"], None),
    lambda p, x, n: (jnp.tanh(x @ p["w"][:, ::-1]) * x[n], None),
    lambda p, x, n: (jnp.zeros_like(x), None),
]


@pytest.mark.parametrize("index", range(3))
def test_equals_lax_switch(index: int) -> None:
    def loss(choose, p, x, index):
        return jnp.square(choose(index, BRANCHES, p, x, NUMBERS)[0]).sum()

    for one, other in zip(
        *(
            jax.tree.leaves(jax.jit(jax.value_and_grad(lambda *a, c=c: loss(c, *a), (0, 1)))(PARAMS, X, index))
            for c in (switch, jax.lax.switch)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def deep(choose):
    """A gradient through six rounds of a loop, each with a branch of its own."""

    def loss(x, index_L, key):
        def step(x, xs):
            index, number = xs
            graph = jax.random.randint(jax.random.fold_in(key, number), (4,), 0, 4)
            return choose(index, BRANCHES, PARAMS, x, graph)[0], None

        return jax.lax.scan(step, x, (index_L, jnp.arange(6)))[0].sum()

    return jax.jit(jax.grad(loss))


@pytest.mark.slow
def test_numbers_may_be_drawn_inside_a_loop() -> None:
    arguments = X, jnp.array([0, 1, 0, 0, 1, 0]), jax.random.key(0)
    np.testing.assert_allclose(deep(switch)(*arguments), deep(jax.lax.switch)(*arguments), rtol=1e-4, atol=1e-4)


def test_a_branch_costs_what_it_is_and_not_what_the_others_are() -> None:
    def wide(x):
        for scale in range(1, 20):
            x = jnp.sin(scale * x)
        return x

    def held(choose) -> int:
        def loss(x, index_L):
            return jax.lax.scan(lambda x, i: (choose(i, [wide, jnp.tanh], x), None), x, index_L)[0].sum()

        x, index_L = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.int32)
        return jax.jit(jax.grad(loss)).lower(x, index_L).compile().memory_analysis().temp_size_in_bytes

    assert held(switch) < held(jax.lax.switch) / 5
