"""The resampler against a float64 reference: as many latents as asked for, of any number of tokens in any order."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vidlang.core.tree import flatten_paths
from vidlang.nn.resampler import Resampler, ResamplerSpec

SPEC = ResamplerSpec(layers=2, width=16, heads=2, mlp=24, latents=3, dtype="float32")
INTO = 12
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(2, 7, INTO)).astype(np.float32)


@functools.cache
def params():
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(Resampler(SPEC, INTO).init, jax.random.key(0), TOKENS))
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


RUN = jax.jit(Resampler(SPEC, INTO).apply)


def read(tokens):
    return RUN(params(), tokens)


def normed(p, x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def reference(tokens):
    """Latents of one clip: in each layer they read the tokens beside themselves."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params()["params"])
    tokens = tokens @ p["stem"]["kernel"] + p["stem"]["bias"]
    x = p["latents"]
    for i in range(SPEC.layers):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        y = normed(row["attention_norm"], x)
        keys = np.concatenate([normed(row["tokens_norm"], tokens), y])
        rows = {"query": y, "key": keys, "value": keys}
        q, k, v = (np.einsum("nd,dak->ank", z, row[name]["kernel"]) for name, z in rows.items())
        logits = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        o = weights / weights.sum(axis=-1, keepdims=True) @ v
        x = x + np.einsum("ank,akd->nd", o, row["out"]["kernel"])
        h = normed(row["mlp_norm"], x) @ row["mlp_in"]["kernel"] + row["mlp_in"]["bias"]
        x = x + h * 0.5 * (1 + erf(h / np.sqrt(2))) @ row["mlp_out"]["kernel"] + row["mlp_out"]["bias"]
    return normed(p["norm"], x)


def test_latents_are_those_of_the_formula():
    assert read(TOKENS).shape == (2, 3, 16)
    for found, tokens in zip(read(TOKENS), TOKENS, strict=True):
        np.testing.assert_allclose(found, reference(tokens.astype(np.float64)), rtol=1e-4, atol=1e-4)


def test_any_number_of_tokens_in_any_order_becomes_as_many_latents():
    for count in (1, 5):
        found = read(TOKENS[:, :count])
        np.testing.assert_allclose(found[0], reference(TOKENS[0, :count].astype(np.float64)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(read(TOKENS[:, ::-1]), read(TOKENS), rtol=1e-4, atol=1e-5)


def test_narrower_tokens_meet_the_first_channels():
    """Tokens of an encoder that runs at a narrower width, which drawn schedules fill up with zeros."""
    filled = np.where(np.arange(INTO) < 6, TOKENS, 0)
    np.testing.assert_allclose(read(TOKENS[..., :6]), read(filled), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_kept_changes_no_value_and_no_gradient(remat):
    def loss(variables, tokens, spec):
        return jnp.sin(Resampler(spec, INTO).apply(variables, tokens)).sum()

    ways = SPEC, dataclasses.replace(SPEC, remat=remat)
    one, other = (jax.jit(jax.value_and_grad(functools.partial(loss, spec=x), (0, 1)))(params(), TOKENS) for x in ways)
    for path, leaf in flatten_paths(one).items():
        np.testing.assert_allclose(flatten_paths(other)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def test_latents_and_layers_are_born_different():
    fresh = nn.unbox(jax.jit(Resampler(SPEC, INTO).init)(jax.random.key(0), TOKENS))["params"]
    assert fresh["latents"].shape == (3, 16) and fresh["layers"]["key"]["kernel"].shape == (2, 16, 2, 8)
    assert np.abs(fresh["latents"][0] - fresh["latents"][1]).max() > 0.01
    kernel = fresh["layers"]["mlp_in"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_left_to_itself_it_is_longvivits():
    spec = ResamplerSpec()
    assert (spec.layers, spec.width, spec.heads, spec.mlp, spec.latents) == (3, 1024, 8, 4096, 256)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"latents": 0}, "model.resampler.latents is 0; it is a number of tokens, from 1 on"),
        ({"heads": 3}, "model.resampler.width 16 does not divide into 3 heads"),
        ({"remat": "some"}, "model.resampler.remat is 'some'; it is one of none, dots, full"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SPEC, **changes)
