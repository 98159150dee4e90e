"""Adapters and low-rank updates begin as nothing, add what they say, follow the width, and are all that trains."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.tree import flatten_paths
from vidlang.models.video import Model
from vidlang.nn.adapters import Adapter
from vidlang.nn.layers import Linear
from vidlang.nn.slicing import slice_params
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.widths import SHARES, DrawnWidths
from vidlang.train.optimizer import make_optimizer

TRANSFORMER = {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
BOTH = {"adapter": 8, "lora_rank": 2, "lora_scale": 0.5}
VIDEO = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3)), jnp.uint8)


def make(**options: Any) -> Model:
    return Model({**TRANSFORMER, **options}, tubelet=(2, 4, 4), pool="cls")


@functools.cache
def fresh() -> Any:
    model = make(**BOTH)
    return jax.jit(lambda key: nn.unbox(model.init(key, VIDEO, train=False))["params"])(jax.random.key(0))


@functools.cache
def moved() -> Any:
    """Parameters none of which is zero any more."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), fresh())


def run(params: Any, dials: Dials = OFF, **options: Any) -> Any:
    model = make(**options)
    return jax.jit(lambda p: model.apply({"params": p}, VIDEO, train=True, dials=dials).tokens_BMD)(params)


@pytest.mark.slow
def test_at_first_the_model_is_the_one_without() -> None:
    kept = {name: leaf for name, leaf in flatten_paths(fresh()).items() if not re.search("adapter|lora_", name)}
    without: Any = {}
    for name, leaf in kept.items():
        *parents, last = name.split("/")
        functools.reduce(lambda tree, key: tree.setdefault(key, {}), parents, without)[last] = leaf
    np.testing.assert_array_equal(run(fresh(), **BOTH), run(without))
    assert np.abs(run(moved(), **BOTH) - run(fresh(), **BOTH)).max() > 0.1


def test_low_rank_is_a_kernel_and_a_product() -> None:
    layer = Linear((4, 3), (5,), ("heads", "head_dim", "embed"), jnp.float32, lora=(2, 0.5))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    down, up = (np.asarray(params[name]["kernel"], np.float64) for name in ("lora_down", "lora_up"))
    kernel = np.asarray(params["kernel"], np.float64) + 0.5 * np.einsum("AKR,RD->AKD", down, up)
    expected = np.einsum("BAK,AKD->BD", np.asarray(x, np.float64), kernel) + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    x, layer = jnp.asarray(rng.normal(size=(1, 3, 8)), jnp.float32), Adapter(8, 4, jnp.float32)
    shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))["params"]
    p = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    h = np.asarray(x, np.float64) @ p["down"]["kernel"] + p["down"]["bias"]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    h = np.maximum(h * p["norm"]["scale"] + p["norm"]["bias"], 0)
    expected = np.asarray(x) + h @ p["up"]["kernel"] + p["up"]["bias"]
    found = layer.apply({"params": jax.tree.map(jnp.float32, p)}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_both_follow_the_width() -> None:
    widths = (12, 4)
    static = run(moved(), Dials(widths=widths), **BOTH)
    index_L = jnp.asarray([SHARES.index(d / 16) for d in widths], jnp.int32)
    traced = run(moved(), Dials(widths=DrawnWidths(index_L, SHARES)), **BOTH)
    np.testing.assert_allclose(traced[..., :4], static, rtol=1e-4, atol=1e-5)
    small, cut = slice_params(make(**BOTH), moved(), widths, VIDEO)
    found = small.apply({"params": cut}, VIDEO, train=False).tokens_BMD
    np.testing.assert_allclose(found, static, rtol=1e-4, atol=1e-5)


def test_they_are_all_that_trains() -> None:
    options = {"total_steps": 1, "batch_size": 1, "learning_rate": 0.1, "train_only": ("adapter", "lora_", "^patch/")}
    optimizer = make_optimizer(moved(), **options)
    trained = {name for name, leaf in flatten_paths(optimizer.split(moved())[0]).items() if leaf is not None}
    assert trained == {name for name in flatten_paths(moved()) if re.search("adapter|lora_|^patch/", name)}
    with pytest.raises(ValueError, match="optimizer.train_only: 'adaptor' matches no parameter"):
        make_optimizer(moved(), **options | {"train_only": ("adaptor",)})
    with pytest.raises(ValueError, match="nothing is left to train"):
        make_optimizer(moved(), **options | {"train_only": ("adapter",), "freeze": ("adapter",)})


@pytest.mark.parametrize("change", [{"adapter": -1}, {"lora_rank": 1.5}, {"lora_rank": True}])
def test_impossible_sizes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a whole number, 0 for none"):
        TransformerSpec(**TRANSFORMER, **change)
