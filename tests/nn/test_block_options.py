"""What published models differ in: norms after the sum, other activations and epsilons, scales of the branches."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.tree import flatten_paths
from vidlang.nn.layers import ACTIVATIONS
from vidlang.nn.layouts import factorize_params
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.widths import SHARES, DrawnWidths

WIDTH, HEADS, MLP, LAYERS = 16, 4, 32, 2
SPEC = TransformerSpec(layers=LAYERS, width=WIDTH, heads=HEADS, mlp=MLP, dtype="float32")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, WIDTH)), jnp.float32)
BERT = dataclasses.replace(SPEC, norm="post", epsilon=0.1)
BEIT = dataclasses.replace(SPEC, layer_scale=0.1)
CLIP = dataclasses.replace(SPEC, activation="quick_gelu", epsilon=1e-5)
TANH = dataclasses.replace(BERT, activation="gelu_tanh", layer_scale=0.1)


@functools.cache
def params(spec: TransformerSpec) -> Any:
    """A stack's parameters, none at its start."""
    fresh = nn.unbox(jax.eval_shape(functools.partial(Stack(spec).init), jax.random.key(0), X))["params"]
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> jax.Array:
        return (("scale" in str(path)) + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, fresh)


def run(spec: TransformerSpec, params: Any, dials: Dials = OFF) -> jax.Array:
    return jax.jit(lambda p: Stack(spec).apply({"params": p}, X, dials=dials).x_BMD)(params)


def _erf_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


# From the published formulas; that by tanh is Hendrycks and Gimpel's approximation by tanh.
FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": _erf_gelu,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def by_formula(spec: TransformerSpec, widths: tuple[int, ...]) -> np.ndarray:
    """Float64 layers of these widths, which never widen: each cuts the first of what it needs."""
    x = np.asarray(X, np.float64)
    for index, d in enumerate(widths):
        p = jax.tree.map(lambda leaf, i=index: np.asarray(leaf[i], np.float64), params(spec)["layers"])
        x, heads, hidden = x[..., :d], d * HEADS // WIDTH, d * MLP // WIDTH

        def norm(x: np.ndarray, q: Any, d: int = d) -> np.ndarray:
            x = x - x.mean(-1, keepdims=True)
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.epsilon) * q["scale"][:d] + q["bias"][:d]

        def attend(x: np.ndarray, q: Any = p["attention"], d: int = d, heads: int = heads) -> np.ndarray:
            query, key, value = (
                np.einsum("BND,DAK->BANK", x, q[n]["kernel"][:d, :heads]) + q[n]["bias"][:heads, None]
                for n in ("query", "key", "value")
            )
            weights = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(WIDTH // HEADS))
            y = weights / weights.sum(-1, keepdims=True) @ value
            return np.einsum("BANK,AKD->BND", y, q["out"]["kernel"][:heads, :, :d]) + q["out"]["bias"][:d]

        def mlp(x: np.ndarray, p: Any = p, d: int = d, hidden: int = hidden) -> np.ndarray:
            h = x @ p["mlp_in"]["kernel"][:d, :hidden] + p["mlp_in"]["bias"][:hidden]
            return FORMULAS[spec.activation](h) @ p["mlp_out"]["kernel"][:hidden, :d] + p["mlp_out"]["bias"][:d]

        for name, branch in (("attention", attend), ("mlp", mlp)):
            scale = p[f"{name}_scale"]["scale"][:d] if spec.layer_scale else 1.0
            if spec.norm == "post":
                x = norm(x + scale * branch(x), p[f"{name}_norm"])
            else:
                x = x + scale * branch(norm(x, p[f"{name}_norm"]))
    return x


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formulas(name: str) -> None:
    x = np.linspace(-6, 6, 97)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), FORMULAS[name](x), atol=2e-6)


@pytest.mark.parametrize("spec", [BERT, BEIT, CLIP, TANH], ids=["bert", "beit", "clip", "all"])
def test_blocks_are_their_formulas_at_every_width(spec: TransformerSpec) -> None:
    for widths in ((WIDTH, WIDTH), (WIDTH, 8)):
        expected = by_formula(spec, widths)
        found = run(spec, params(spec), Dials(widths=widths))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        if spec in (BERT, BEIT):
            drawn = DrawnWidths(jnp.asarray([SHARES.index(d / WIDTH) for d in widths]), SHARES)
            found = run(spec, params(spec), Dials(widths=drawn))
            np.testing.assert_allclose(found[..., : widths[-1]], expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(found[..., widths[-1] :], 0.0)


def test_layer_scale_starts_where_it_says() -> None:
    start = flatten_paths(nn.unbox(jax.jit(Stack(BEIT).init)(jax.random.key(0), X))["params"])
    scales = {name: leaf for name, leaf in start.items() if name.endswith("_scale/scale")}
    assert set(scales) == {"layers/attention_scale/scale", "layers/mlp_scale/scale"}
    for leaf in scales.values():
        np.testing.assert_array_equal(leaf, np.full((LAYERS, WIDTH), 0.1, np.float32))


def test_defaults_add_no_parameter_and_names_are_those_of_every_block() -> None:
    plain = set(flatten_paths(params(SPEC)))
    assert plain == set(flatten_paths(params(BERT))) == set(flatten_paths(params(CLIP)))
    assert len(plain) == 16 and set(flatten_paths(params(BEIT))) - plain == {
        "layers/attention_scale/scale",
        "layers/mlp_scale/scale",
    }


def test_factorized_layers_take_the_scale_over_too() -> None:
    spec = dataclasses.replace(BEIT, layout="factorized")
    wanted = jax.eval_shape(functools.partial(Stack(spec).init, times=5), jax.random.key(0), X)["params"]
    carried = factorize_params(params(BEIT))
    assert set(flatten_paths(carried)) == set(flatten_paths(nn.unbox(wanted)))
    found = jax.jit(lambda p: Stack(spec).apply({"params": p}, X, times=1).x_BMD)(carried)  # gates are closed
    np.testing.assert_allclose(found, run(BEIT, params(BEIT)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "middle"}, "norm is 'middle'; it is one of pre, post"),
        ({"norm": "post", "layout": "divided"}, "norm 'post' has one attention a layer"),
        ({"activation": "swish"}, "activation is 'swish'; it is one of gelu, quick_gelu, gelu_tanh"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be a positive number"),
        ({"layer_scale": -1.0}, "layer_scale is -1.0"),
        ({"drop_path": 1.0}, r"drop_path is 1.0; it is a share of the rows, in \[0, 1\)"),
        ({"drop_path": 0.1, "layers": 1}, "drop_path rises from 0 in the first layer, and this stack has one"),
    ],
)
def test_impossible_blocks_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SPEC, **change)
