"""Gated cross-attentions against a float64 reference: shut at birth, before the first of every k layers, and what they
made of a video once serves for all that follows."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from vidlang.core.tree import flatten_paths
from vidlang.nn.decoder import Cross, Decoder
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.gated_cross import CrossSpec

LANGUAGE = DecoderSpec(layers=4, width=16, heads=4, kv_heads=2, mlp=24, vocab=20, max_length=8, dtype="float32")
GPT2 = {"norm": "layer", "positions": "learned", "gated": False, "mlp_bias": True, "activation": "relu", "kv_heads": 4}
LANGUAGES = {"llama": LANGUAGE, "gpt2": dataclasses.replace(LANGUAGE, **GPT2, epsilon=1e-5)}
VISUAL_WIDTH = 12
RNG = np.random.default_rng(0)
WORDS = RNG.normal(size=(3, 5, 16)).astype(np.float32)
VIDEO = RNG.normal(size=(3, 6, VISUAL_WIDTH)).astype(np.float32)
TEXTS = RNG.integers(1, 20, (3, 6)).astype(np.int32)


def block_of(language="llama", **changes):
    return CrossSpec(**{"every": 2, "heads": 2, "mlp": 20, **changes}).block(LANGUAGES[language], VISUAL_WIDTH)


@functools.cache
def params(language="llama", layers=0):
    """Away from where they start, gates open; of one block, or of so many stacked ones."""
    rng, ways = np.random.default_rng(1), (layers,) if layers else ()
    shapes = nn.unbox(jax.eval_shape(block_of(language).init, jax.random.key(0), WORDS, VIDEO))
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=ways + leaf.shape)).astype(np.float32), shapes)


@functools.cache
def decoder_params(language="llama"):
    rng = np.random.default_rng(2)
    shapes = nn.unbox(jax.eval_shape(Decoder(LANGUAGES[language]).init, jax.random.key(0), TEXTS))
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def normed(spec, p, x):
    if spec.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + spec.epsilon) * p["scale"] + p.get("bias", 0.0)


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def reference(language, words, video):
    """One text beside one video."""
    spec = LANGUAGES[language]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params(language)["params"])
    seen = normed(spec, p["visual_norm"], video)
    rows = {"query": normed(spec, p["attention_norm"], words), "key": seen, "value": seen}
    q, k, v = (np.einsum("nd,dak->ank", x, p[name]["kernel"]) for name, x in rows.items())
    logits = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    o = weights / weights.sum(axis=-1, keepdims=True) @ v
    x = words + np.tanh(p["attention_open"]) * np.einsum("ank,akd->nd", o, p["out"]["kernel"])
    y = normed(spec, p["mlp_norm"], x)
    h = linear(p["mlp_in"], y)
    if spec.gated:
        gate = linear(p["mlp_gate"], y)
        h = gate * expit(gate) * h
    else:
        h = np.maximum(h, 0)
    return x + np.tanh(p["mlp_open"]) * linear(p["mlp_out"], h)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_layer_is_the_formula_and_what_it_made_of_a_video_serves_again(language):
    run = jax.jit(block_of(language).apply)
    found, known = run(params(language), WORDS, VIDEO)
    for x, words, video in zip(found, WORDS.astype(np.float64), VIDEO.astype(np.float64), strict=True):
        np.testing.assert_allclose(x, reference(language, words, video), rtol=1e-4, atol=1e-4)
    assert [x.shape for x in known] == [(3, 6, 2, 8)] * 2
    assert params(language)["params"]["mlp_in"]["kernel"].shape == (16, 20)
    again, same = run(params(language), WORDS, None, known)
    np.testing.assert_array_equal(again, found)
    jax.tree.map(np.testing.assert_array_equal, same, known)


def test_shut_gates_pass_on_what_comes_to_the_bit_and_are_all_that_learns_at_first():
    fresh = nn.unbox(jax.jit(block_of().init)(jax.random.key(0), WORDS, VIDEO))

    def loss(variables):
        return jnp.sin(block_of().apply(variables, WORDS, VIDEO)[0]).sum()

    np.testing.assert_array_equal(jax.jit(block_of().apply)(fresh, WORDS, VIDEO)[0], WORDS)
    grads = flatten_paths(jax.jit(jax.grad(loss))(fresh)["params"])
    assert {name for name, leaf in grads.items() if np.abs(leaf).max() > 0} == {"attention_open", "mlp_open"}
    grads = flatten_paths(jax.jit(jax.grad(loss))(params())["params"])
    assert all(np.abs(leaf).max() > 0 for leaf in grads.values()), "once open, everything learns"


def test_the_scale_of_what_comes_from_another_model_does_not_matter():
    run = jax.jit(block_of().apply)
    np.testing.assert_allclose(
        run(params(), WORDS, 50 * VIDEO)[0], run(params(), WORDS, VIDEO)[0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("every", [1, 2, 4])
def test_it_stands_before_the_first_of_every_k_layers(every):
    """A language model with them is its layers and these, one after another by hand."""
    block, stacked = block_of(every=every), params(layers=4 // every)["params"]

    def together(variables, video):
        return Decoder(LANGUAGE).apply(variables, TEXTS, Cross(block, stacked, video))

    def by_hand(variables, video):
        model = Decoder(LANGUAGE).bind(variables)
        places_BL, x_BLD = jnp.arange(6)[None], model.words(TEXTS)
        for i in range(4):
            if i % every == 0:
                looking = jax.tree.map(lambda x, i=i: x[i // every], stacked)
                x_BLD, _ = block.apply({"params": looking}, x_BLD, video)
            own = jax.tree.map(lambda x, i=i: x[i], model.layers)
            x_BLD, _ = model.block.apply({"params": own}, x_BLD, places_BL, jnp.zeros((), bool))
        return model.norm(x_BLD) @ variables["params"]["words"]["table"].T

    one, other = (jax.jit(way)(decoder_params(), VIDEO) for way in (together, by_hand))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert np.abs(one - jax.jit(Decoder(LANGUAGE).apply)(decoder_params(), TEXTS)).max() > 0.1


@functools.cache
def value_and_gradients(spec):
    """Of a language model that looks at videos, by its own parameters, those of the layers between, and the videos."""

    def loss(new, variables, video):
        block = CrossSpec(2, 2, 20).block(spec, VISUAL_WIDTH)
        return jnp.sin(Decoder(spec).apply(variables, TEXTS, Cross(block, new, video))).sum()

    given = params(layers=2)["params"], decoder_params(), VIDEO
    return flatten_paths(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*given))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": "full"}, {"scan": False, "remat": "dots"}], ids=str)
def test_how_layers_run_changes_no_value_and_no_gradient(changes):
    found = value_and_gradients(dataclasses.replace(LANGUAGE, **changes))
    for path, leaf in value_and_gradients(LANGUAGE).items():
        np.testing.assert_allclose(found[path], leaf, rtol=5e-4, atol=5e-4, err_msg=path)


def test_left_out_settings_are_those_of_the_language_model():
    block = CrossSpec().block(LANGUAGE, VISUAL_WIDTH)
    assert (block.every, block.heads, block.mlp) == (1, 4, 24)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="model.cross.every is 0; it must be a whole number from 1 on"):
        CrossSpec(every=0)
    with pytest.raises(ValueError, match="model.cross.heads is True; it must be a whole number from 0 on"):
        CrossSpec(heads=True)
    with pytest.raises(ValueError, match="every is 3, and the language model's 4 layers do not divide into runs"):
        block_of(every=3)
    with pytest.raises(ValueError, match="width 16 does not divide into 3 heads; set model.cross.heads"):
        block_of(heads=3)
    for video in (VIDEO[..., :8], None):
        with pytest.raises(ValueError, match=r"reads \[B, Q, 12\] of a video; found"):
            block_of().apply(params(), WORDS, video)
