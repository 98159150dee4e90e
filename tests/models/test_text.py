"""The text encoder: padding is invisible, each pooling takes what it says, and bad texts are refused."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.models.text import Model, Output, not_padding

RNG = np.random.default_rng(0)
TRANSFORMER = {"layers": 1, "scan": False, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}
TEXT = jnp.array([[2, 5, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0], [2, 5, 6, 4, 9, 8, 3], [0] * 7])
LENGTHS = (5, 3, 7, 0)


def make(pool: str, **transformer: Any) -> Model:
    return Model(vocab=12, max_length=8, transformer=nn.FrozenDict(TRANSFORMER | transformer), pool=pool)


@pytest.fixture(scope="module")
def params() -> Any:
    """The same for every pooling: how a text is pooled has no parameters."""
    shapes = nn.unbox(jax.eval_shape(functools.partial(make("mean").init, train=False), jax.random.key(0), TEXT))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * RNG.normal(size=leaf.shape), jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def encode(model: Model, params: Any, text_BL: jax.Array) -> Output:
    return model.apply(params, text_BL, train=False)


@jax.jit
def pools(params: Any, text_BL: jax.Array) -> dict[str, Output]:
    return {pool: make(pool).apply(params, text_BL, train=False) for pool in ("cls", "eos", "mean")}


def test_pools_what_it_says_and_never_padding(params: Any) -> None:
    outputs = pools(params, TEXT)
    for row in (0, 1):
        length = LENGTHS[row]
        tokens = np.asarray(encode(make("mean"), params, TEXT[row : row + 1, :length]).tokens_BLD[0])
        expected = {"cls": tokens[0], "eos": tokens[-1], "mean": tokens.mean(0)}
        for pool, output in outputs.items():
            assert output.pooled_BD.dtype == jnp.float32
            np.testing.assert_allclose(output.tokens_BLD[row, :length], tokens, atol=1e-5)
            np.testing.assert_allclose(output.pooled_BD[row], expected[pool], atol=1e-5, err_msg=pool)


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_the_zeros_at_the_end(seed: int) -> None:
    texts = np.random.default_rng(seed).integers(0, 3, (50, 7)).astype(np.int32)
    for text_L, valid_L in zip(texts, np.asarray(not_padding(jnp.asarray(texts))), strict=True):
        length = len(np.trim_zeros(text_L, "b"))
        assert valid_L.tolist() == [True] * length + [False] * (7 - length)


def test_zero_inside_a_text_is_a_word_and_zeros_after_it_are_nothing(params: Any) -> None:
    text = TEXT.at[0].set(jnp.array([2, 5, 0, 9, 3, 0, 0]))
    tokens = np.asarray(encode(make("mean"), params, text[:1, :5]).tokens_BLD[0])
    expected = {"cls": tokens[0], "eos": tokens[4], "mean": tokens.mean(0)}
    others = pools(params, text.at[0, 2].set(7))
    for pool, output in pools(params, text).items():
        np.testing.assert_allclose(output.pooled_BD[0], expected[pool], atol=1e-5, err_msg=pool)
        # All attend to the word 0: with another word there they come out different.
        assert (np.abs(others[pool].tokens_BLD - output.tokens_BLD)[0, :5].max(-1) > 1e-5).all()


@pytest.mark.slow
def test_texts_of_nothing_but_padding_stay_finite(params: Any) -> None:
    def loss(params: Any) -> jax.Array:
        return sum(jnp.square(output.pooled_BD).sum() for output in pools(params, TEXT[3:]).values())

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in [value, *jax.tree.leaves(gradient)])
    np.testing.assert_array_equal(pools(params, TEXT)["mean"].pooled_BD[3], np.zeros(16))


def test_order_of_words_matters(params: Any) -> None:
    swapped = TEXT.at[0, 1].set(7).at[0, 2].set(5)
    model = make("mean")
    assert np.abs(encode(model, params, TEXT).pooled_BD[0] - encode(model, params, swapped).pooled_BD[0]).max() > 1e-3


def test_padding_that_is_a_word_is_read_as_that_word(params: Any) -> None:
    """SigLIP's texts: everything is attended to, and the last token is that in the last place."""
    written = jnp.where(not_padding(TEXT), TEXT, 4)
    found = encode(make("eos").clone(pad_word=4), params, TEXT)
    assert found.valid_BL.all()
    np.testing.assert_allclose(found.tokens_BLD, encode(make("eos"), params, written).tokens_BLD, atol=1e-5)
    np.testing.assert_array_equal(found.pooled_BD, found.tokens_BLD[:, -1])
    zero = encode(make("mean").clone(pad_word=0), params, TEXT)  # SigLIP 2's, which is a word too
    assert zero.valid_BL.all() and np.abs(zero.tokens_BLD - encode(make("mean"), params, TEXT).tokens_BLD).max() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_who_sees_whom(causal: bool, params: Any) -> None:
    changed = TEXT.at[0, 3].set(11)
    model = make("mean", causal=causal)
    moved = np.abs(encode(model, params, TEXT).tokens_BLD - encode(model, params, changed).tokens_BLD)[0].max(-1)
    assert (moved[3:5] > 1e-4).all()
    assert (moved[:3] == 0).all() if causal else (moved[:3] > 1e-5).all()


@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        (make("mean"), jnp.ones((2, 9), jnp.int32), r"texts of 9 tokens; this model takes 1 to 8 \(text.max_length\)"),
        (make("mean"), jnp.ones((2, 4)), "integer ids .* found float32"),
        (make("mean"), jnp.ones(4, jnp.int32), r"integer ids .* shape \(4,\)"),
        (make("max"), TEXT, "pool is 'max'; it is one of cls, eos, mean"),
        (make("cls", causal=True), TEXT, "'cls' takes the first token"),
        (make("mean").clone(pad_word=12), TEXT, "pad_word is 12; it is an id below the vocabulary's 12, or None"),
        (make("mean").clone(pad_word=True), TEXT, "pad_word is True"),
        (make("mean", deep=3), TEXT, "text.transformer has an unknown key 'deep'"),
    ],
)
def test_what_it_cannot_read_is_refused(model: Model, text: jax.Array, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), text)
