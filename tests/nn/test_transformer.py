"""One stack, however it runs: scanned or unrolled, kept or recomputed, it is the same function of the same tree."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from vidlang.core.tree import flatten_paths
from vidlang.nn import transformer
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Block, Stack

SPEC = TransformerSpec(layers=2, width=16, heads=2, mlp=32, dtype="float32")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 16)), jnp.float32)
MASK = jnp.asarray(np.array([[True] * 5, [True] * 3 + [False] * 2]))[:, None, None]
RUNS = [(True, "none"), (True, "dots"), (True, "full"), (False, "dots")]


@pytest.fixture(scope="module")
def params() -> Any:
    """A stack's parameters, none at its start, so that biases and scales matter."""
    fresh = nn.unbox(jax.eval_shape(Stack(SPEC).init, jax.random.key(0), X))["params"]

    def draw(path: Any, leaf: Any) -> jax.Array:
        centre = 1.0 if "scale" in str(path) else 0.0
        return jnp.asarray(centre + 0.2 * RNG.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, fresh)


@functools.partial(jax.jit, static_argnums=0)
def run(spec: TransformerSpec, params: Any, x_BND: jax.Array, mask_BANS: jax.Array | None = MASK) -> jax.Array:
    return Stack(spec).apply({"params": params}, x_BND, mask_BANS).x_BMD


def value_and_gradients(spec: TransformerSpec) -> Any:
    def loss(params: Any, x_BND: jax.Array) -> jax.Array:
        return jnp.sin(run(spec, params, x_BND)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.fixture(scope="module")
def plain(params: Any) -> dict[str, np.ndarray]:
    """Value and gradients of the run with nothing special."""
    return flatten_paths(value_and_gradients(dataclasses.replace(SPEC, scan=False))(params, X))


@pytest.mark.parametrize(("scan", "remat"), RUNS)
def test_every_run_has_the_same_value_and_gradients(scan: bool, remat: str, params: Any, plain: Any) -> None:
    found = flatten_paths(value_and_gradients(dataclasses.replace(SPEC, scan=scan, remat=remat))(params, X))
    assert found.keys() == plain.keys() and len(found) > 15
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, plain[name], rtol=2e-4, atol=2e-5, err_msg=name)
        assert np.abs(leaf).max() > 1e-6 or "key/bias" in name, f"no gradient in {name}"


def test_remat_recomputes_and_dots_less_than_full(params: Any) -> None:
    def counted(remat: str) -> tuple[int, int]:
        """How many matrix products and how many transcendental functions the backward pass holds."""
        text = str(jax.make_jaxpr(value_and_gradients(dataclasses.replace(SPEC, remat=remat)))(params, X))
        return text.count("dot_general"), text.count("erf")

    none, dots, full = counted("none"), counted("dots"), counted("full")
    assert none[0] < dots[0] < full[0], "dots saves linear maps, and not the products of attention"
    assert none[1] < dots[1] == full[1], "both compute the GELU again"


def test_scan_compiles_one_layer_whatever_the_depth() -> None:
    def size(layers: int, scan: bool) -> int:
        spec = dataclasses.replace(SPEC, layers=layers, scan=scan)
        variables = jax.eval_shape(lambda: nn.unbox(Stack(spec).init(jax.random.key(0), X)))
        return str(jax.make_jaxpr(lambda variables: run(spec, variables["params"], X))(variables)).count("dot_general")

    assert size(1, True) == size(3, True)
    assert size(3, False) == 3 * size(1, False)


def test_stacked_init_is_that_of_independent_blocks() -> None:
    boxed = jax.jit(Stack(SPEC).init)(jax.random.key(7), X)["params"]["layers"]
    stacked = flatten_paths(nn.unbox(boxed))

    # Linen derives a parameter's key from its module's path and name; a module with one other value gets the same.
    layers_key = _KeyOfLayers().init_with_output(jax.random.key(7))[0]
    init_block = jax.jit(Block(SPEC).init)
    for index, key in enumerate(jax.random.split(layers_key, SPEC.layers)):
        one = init_block(key, X)["params"]
        for name, leaf in flatten_paths(nn.unbox(one)).items():
            np.testing.assert_allclose(stacked[name][index], leaf, rtol=1e-6, err_msg=f"{name} of layer {index}")
        boxes = flatten_paths(jax.tree.map(lambda b: b.names, one, is_leaf=_is_box))
        stacked_boxes = flatten_paths(jax.tree.map(lambda b: b.names[1:], boxed, is_leaf=_is_box))
        assert boxes == stacked_boxes
    kernel = stacked["mlp_in/kernel"]
    assert not np.allclose(kernel[0], kernel[1]), "layers start alike"
    assert {box.names[0] for box in jax.tree.leaves(boxed, is_leaf=_is_box)} == {"layers"}


class _KeyOfLayers(nn.Module):
    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("layers", lambda key: key)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def test_block_is_pre_norm_with_exact_gelu(params: Any) -> None:
    p = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["layers"])

    def norm(x: np.ndarray, q: dict) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]

    def attention(x: np.ndarray, q: dict) -> np.ndarray:
        a, b, c = (
            np.einsum("ND,DAK->ANK", x, q[n]["kernel"]) + q[n]["bias"][:, None] for n in ("query", "key", "value")
        )
        weights = np.exp(np.einsum("ANK,ASK->ANS", a, b) / np.sqrt(8))
        out = np.einsum("ANS,ASK->NAK", weights / weights.sum(-1, keepdims=True), c)
        return np.einsum("NAK,AKD->ND", out, q["out"]["kernel"]) + q["out"]["bias"]

    erf = np.vectorize(math.erf)
    x = np.asarray(X[0], np.float64)
    x = x + attention(norm(x, p["attention_norm"]), p["attention"])
    h = norm(x, p["mlp_norm"]) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
    h = h * (1 + erf(h / np.sqrt(2))) / 2
    x = x + h @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]
    first = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    np.testing.assert_allclose(jax.jit(Block(SPEC).apply)({"params": first}, X)[0][0], x, rtol=1e-4, atol=1e-4)


def test_layers_run_in_order(params: Any) -> None:
    x, block = X, jax.jit(Block(SPEC).apply)
    for index in range(SPEC.layers):
        x = block({"params": jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"])}, x, MASK)[0]
    np.testing.assert_allclose(run(SPEC, params, X), x, rtol=1e-5, atol=1e-5)


def test_masked_tokens_change_nobody(params: Any) -> None:
    moved = X.at[1, 3:].set(5.0 * X[0, :2])
    one, other = run(SPEC, params, X), run(SPEC, params, moved)
    np.testing.assert_array_equal(one[1, :3], other[1, :3])
    everyone = jnp.ones_like(MASK)
    seen = run(SPEC, params, X, everyone) - run(SPEC, params, moved, everyone)
    assert np.abs(seen[1, :3]).max() > 1e-3


def test_causal_tokens_depend_on_earlier_ones_only(params: Any) -> None:
    spec = dataclasses.replace(SPEC, causal=True)
    jacobian = jax.jit(jax.jacrev(lambda x: run(spec, params, x, None)[0].sum(-1)))(X)[:, 0]  # [N, S, D]
    depends = np.abs(jacobian).max(-1) > 0
    np.testing.assert_array_equal(depends, np.tri(5, dtype=bool))


def test_bfloat16_is_near_float32_and_keeps_float32_parameters(params: Any) -> None:
    spec = dataclasses.replace(SPEC, dtype="bfloat16")
    y = run(spec, params, X)
    assert y.dtype == jnp.bfloat16
    assert np.abs(y.astype(jnp.float32) - run(SPEC, params, X)).max() < 0.15
    boxed = jax.eval_shape(Stack(spec).init, jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(boxed)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 3}, "width 16 does not divide into 3 heads"),
        ({"layers": 0}, "layers is 0; it must be a positive integer"),
        ({"mlp": 2.5}, "mlp is 2.5"),
        ({"dtype": "float64"}, "dtype is 'float64'; it is one of bfloat16, float32"),
        ({"remat": "some"}, "remat is 'some'; it is one of none, dots, full"),
        ({"attention": "flash"}, "attention is 'flash'; it is one of auto"),
    ],
)
def test_impossible_spec_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SPEC, **change)


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens have width 8; transformer.width is 16"):
        jax.eval_shape(Stack(SPEC).init, jax.random.key(0), X[..., :8])


def test_parameters_of_another_model_are_refused(params: Any) -> None:
    more = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), params)
    with pytest.raises(ValueError, match=r"layers holds an array of the shape \(3, .* where the model has 2 layers"):
        jax.eval_shape(lambda p: Stack(SPEC).apply({"params": p}, X), more)
    wide = dataclasses.replace(SPEC, mlp=48)
    with pytest.raises(ScopeParamShapeError, match="mlp_in"):
        jax.eval_shape(lambda p: Stack(wide).apply({"params": p}, X), params)


def test_an_application_makes_no_fresh_layers(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To trace that takes as long as to trace a layer."""
    monkeypatch.setattr(transformer, "_init_layers", lambda *some: pytest.fail("layers were made"))
    jax.eval_shape(lambda p: Stack(SPEC).apply({"params": p}, X), params)
