"""Fusion layers against a float64 numpy reference, and pruning by text against its own attention."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vidlang.nn.cross_attention import Fusion, fusion_spec
from vidlang.nn.spec import TransformerSpec

TEXT = TransformerSpec(layers=5, width=16, heads=2, mlp=24, dtype="float32", causal=True, drop_path=0.1)
VIDEO_WIDTH, TOKENS = 12, 9  # of the tokens, the first is cls
RNG = np.random.default_rng(0)
WORDS = RNG.normal(size=(3, 5, 16)).astype(np.float32)
VIDEO = RNG.normal(size=(3, TOKENS, VIDEO_WIDTH)).astype(np.float32)
VALID = np.arange(5)[None] < np.array([[5], [3], [1]])


def make(norm: str = "pre", layers: int = 3, **changes: Any) -> Fusion:
    text = TransformerSpec(**{**vars(TEXT), "norm": norm, "epsilon": 1e-5})
    return Fusion(fusion_spec(text, layers=layers, **changes), VIDEO_WIDTH)


@functools.cache
def params(norm: str = "pre") -> Any:
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(make(norm).init, jax.random.key(0), WORDS, VALID, VIDEO))
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@functools.cache
def fused(norm: str = "pre", keep: Any = (), globals: int = 1) -> Any:
    run = jax.jit(lambda p: make(norm).apply(p, WORDS, VALID, VIDEO, keep=keep, globals=globals))
    return jax.tree.map(np.asarray, run(params(norm)))


# The reference, from the formulas.


def normed(p: Any, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attended(p: Any, x: np.ndarray, keys: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(output [N, D], weights [A, N, S]) of one example."""
    q, k, v = (
        np.einsum("nd,dak->ank", rows, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name, rows in (("query", x), ("key", keys), ("value", keys))
    )
    logits = np.where(valid, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("ank,akd->nd", weights @ v, p["out"]["kernel"]) + p["out"]["bias"], weights


def layer(p: Any, x: np.ndarray, video: np.ndarray, valid: np.ndarray, post: bool) -> tuple[np.ndarray, np.ndarray]:
    """(text tokens, how much the first attends to each video token) of one example."""
    weights = np.zeros(0)

    def branch(name: str, x: np.ndarray) -> np.ndarray:
        nonlocal weights
        if name == "attention":
            return attended(p[name], x, x, valid)[0]
        if name == "cross_attention":
            y, weights = attended(p[name], x, video, np.ones(len(video), bool))
            return y
        h = x @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
        return h * 0.5 * (1 + erf(h / np.sqrt(2))) @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]

    for name in ("attention", "cross_attention", "mlp"):
        norm = functools.partial(normed, p[f"{name}_norm"])
        x = norm(x + branch(name, x)) if post else x + branch(name, norm(x))
    return x, weights[:, 0].mean(axis=0)


def reference(
    norm: str, keep: dict[int, int] | None = None, globals: int = 1
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(text tokens, kept tokens) of each example, where `keep` says how many go on after a layer."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params(norm)["params"])
    texts, kepts = [], []
    for words, video, valid in zip(WORDS.astype(np.float64), VIDEO.astype(np.float64), VALID, strict=True):
        x, kept = words, np.arange(TOKENS - globals)
        for i in range(3):
            tokens = np.concatenate([video[:globals], video[globals:][kept]])
            row = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
            x, score = layer(row, x, tokens, valid, norm == "post")
            if keep and i in keep:
                best = np.argsort(-score[globals:])[: keep[i]]
                kept = kept[np.sort(best)]
        texts.append(normed(p["norm"], x) if norm == "pre" else x)
        kepts.append(kept)
    return texts, kepts


def check(found: Any, texts: list[np.ndarray]) -> None:
    """Tokens that are no padding are the reference's."""
    for x, text, valid in zip(found.x_BLD, texts, VALID, strict=True):
        np.testing.assert_allclose(x[valid], text[valid], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_layers_are_the_formula(norm: str) -> None:
    check(fused(norm), reference(norm)[0])
    assert fused(norm).kept_BM is None
    assert ("norm" in params(norm)["params"]) == (norm == "pre"), "where norms come last, there is no other after them"


@pytest.mark.parametrize("globals", [0, 1])
def test_pruning_keeps_what_the_first_token_attends_to_and_later_layers_see_only_that(globals: int) -> None:
    # Of 8 tokens, ceil(0.6 * 8) = 5 go on, and of these ceil(0.5 * 5) = 3; without cls, 6 of 9 and 3 of 6.
    counts = {1: {0: 5, 1: 3}, 0: {0: 6, 1: 3}}[globals]
    found = fused(keep=((0, 0.6), (1, 0.5)), globals=globals)
    texts, kept = reference("pre", counts, globals)
    np.testing.assert_array_equal(found.kept_BM, kept)
    check(found, texts)
    assert np.abs(found.x_BLD - fused().x_BLD).max() > 1e-2, "pruning changed nothing here"


def test_pruning_after_the_last_layer_only_tells_what_it_kept() -> None:
    found = fused(keep=((2, 0.25),))
    np.testing.assert_array_equal(found.kept_BM, reference("pre", {2: 2})[1])
    np.testing.assert_array_equal(found.x_BLD, fused().x_BLD)


def test_keeping_all_is_off_to_the_bit() -> None:
    found = fused(keep=((0, 1.0), (1, 1.0)))
    np.testing.assert_array_equal(found.x_BLD, fused().x_BLD)
    assert found.kept_BM is None


def test_padding_never_matters() -> None:
    other = np.where(VALID[..., None], WORDS, 7.0).astype(np.float32)
    run = jax.jit(lambda words: make().apply(params(), words, VALID, VIDEO, keep=((0, 0.5),), globals=1))
    one, two = run(WORDS), run(other)
    np.testing.assert_array_equal(one.kept_BM, two.kept_BM)
    np.testing.assert_array_equal(np.asarray(one.x_BLD)[VALID], np.asarray(two.x_BLD)[VALID])


@pytest.mark.slow
def test_how_layers_run_changes_no_value_and_no_gradient() -> None:
    def loss(p: Any, video: jax.Array, **changes: Any) -> jax.Array:
        return jnp.sin(make(layers=2, **changes).apply(p, WORDS, VALID, video, keep=((0, 0.5),)).x_BLD).sum()

    two = {"params": params()["params"] | {"layers": jax.tree.map(lambda leaf: leaf[:2], params()["params"]["layers"])}}
    ways = {}, {"scan": False, "remat": "full"}
    one, other = (jax.jit(jax.value_and_grad(functools.partial(loss, **way), (0, 1)))(two, VIDEO) for way in ways)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_layers_are_the_texts_but_see_in_both_directions() -> None:
    spec = fusion_spec(TEXT, layers=2, mlp=8)
    assert (spec.layers, spec.width, spec.heads, spec.mlp) == (2, 16, 2, 8)
    assert not spec.causal and not spec.drop_path


def test_layers_that_are_not_there_cannot_prune() -> None:
    with pytest.raises(ValueError, match="keep_text prunes after layer 3; the fusion layers are 0 to 2"):
        make().apply(params(), WORDS, VALID, VIDEO, keep=((3, 0.5),))
    with pytest.raises(ValueError, match="expected the widths 16 and 12"):
        make().apply(params(), WORDS[..., :8], VALID, VIDEO)
