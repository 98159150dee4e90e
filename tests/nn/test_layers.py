"""Layers against numpy, their logical names, and what they compute in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.nn.layers import Embed, LayerNorm, Linear


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("into", "out", "equation"),
    [((6,), (4,), "BND,DF->BNF"), ((6,), (2, 3), "BND,DAK->BNAK"), ((2, 3), (6,), "BNAK,AKD->BND")]
    + [((1, 6), (6,), "BNAK,AKD->BND")],  # one head: its size is the flattened size too
)
def test_linear_sums_over_its_input_axes(into: tuple[int, ...], out: tuple[int, ...], equation: str) -> None:
    names = ("embed", "heads", "mlp")[: len(into) + len(out)]
    x, layer = normal(2, 5, *into), Linear(into, out, names, jnp.float32)
    boxed = layer.init(jax.random.key(0), x)["params"]
    assert boxed["kernel"].names == names and boxed["bias"].names == names[len(into) :]
    params = nn.unbox(boxed) | {"bias": normal(*out)}
    assert params["kernel"].shape == into + out
    expected = np.einsum(equation, x, params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)
    flat = layer.apply({"params": params}, x.reshape(2, 5, -1))
    np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-5)


def test_kernel_variance_is_that_of_the_matrix_it_is() -> None:
    kernel = (
        Linear((512,), (8, 64), ("embed", "heads", "head_dim"), jnp.float32)
        .init(jax.random.key(0), jnp.zeros((1, 512)))["params"]["kernel"]
        .value
    )
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (512 + 512)), rtol=0.02)


def test_linear_without_bias_in_half_precision_keeps_float32_parameters() -> None:
    layer = Linear((6,), (4,), ("embed", "joint"), jnp.bfloat16, bias=False)
    y, variables = layer.init_with_output(jax.random.key(0), normal(2, 6))
    assert y.dtype == jnp.bfloat16 and set(variables["params"]) == {"kernel"}
    assert variables["params"]["kernel"].value.dtype == jnp.float32


def test_layer_norm_equals_float64_even_far_from_zero() -> None:
    # In half precision the mean of these would swallow their differences.
    x = (100 + normal(3, 64)).astype(jnp.bfloat16)
    layer = LayerNorm(64, jnp.bfloat16)
    params = {"scale": 1 + 0.1 * normal(64), "bias": normal(64)}
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
    y = layer.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-7, atol=2**-7)
    exact = LayerNorm(64, jnp.float32).apply({"params": params}, x)
    np.testing.assert_allclose(exact, expected, atol=1e-4)


def test_layer_norm_starts_as_plain_normalisation() -> None:
    params = nn.unbox(LayerNorm(8, jnp.float32).init(jax.random.key(0), normal(1, 8)))["params"]
    np.testing.assert_array_equal(params["scale"], np.ones(8))
    np.testing.assert_array_equal(params["bias"], np.zeros(8))


def test_embed_looks_up_rows_and_marks_unknown_ids() -> None:
    layer, ids = Embed(5, 4, jnp.float32), jnp.array([[0, 4, 2], [3, 5, 1]])
    variables = layer.init(jax.random.key(0), ids)
    assert variables["params"]["table"].names == ("vocab", "embed")
    rows = np.asarray(layer.apply(nn.unbox(variables), ids))
    table = np.asarray(variables["params"]["table"].value)
    np.testing.assert_array_equal(rows[0], table[[0, 4, 2]])
    assert np.isnan(rows[1, 1]).all() and np.isfinite(np.delete(rows[1], 1, axis=0)).all()
