"""Language models against float64 loops over tokens and heads, over whole texts and one token after another."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from vidlang.core.tree import flatten_paths
from vidlang.nn.decoder import Decoder
from vidlang.nn.decoder_spec import DecoderSpec

PLAIN = DecoderSpec(layers=2, width=16, heads=4, mlp=24, vocab=20, max_length=12, dtype="float32")
GPT2 = {"norm": "layer", "positions": "learned", "activation": "gelu_tanh", "gated": False, "epsilon": 1e-5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {"norm_offset": True, "post_norms": True, "qk_norm": True, "embed_scale": 4.0, "activation": "gelu_tanh"}
SPECS = {
    "gpt2": dataclasses.replace(PLAIN, **GPT2, qkv_bias=True, out_bias=True, mlp_bias=True),
    "llama": dataclasses.replace(
        PLAIN, kv_heads=2, tied=False, rotary_scaling={**LLAMA3, "original_max_position_embeddings": 16}
    ),
    "gemma": dataclasses.replace(
        PLAIN,
        **{**GEMMA, "kv_heads": 1, "head_size": 6, "query_scale": 0.3, "logit_cap": 3.0, "attention_cap": 2.0},
        **{"window": 3, "global_every": 2, "rotary_base": 1000.0, "local_base": 100.0},
    ),
    "qwen": dataclasses.replace(
        PLAIN, kv_heads=2, qkv_bias=True, qk_norm=True, rotary_scaling={"rope_type": "linear", "factor": 2.0}
    ),
}
RNG = np.random.default_rng(0)
TEXTS = RNG.integers(1, 20, (3, 9)).astype(np.int32)
LENGTHS = np.array([4, 1, 3], np.int32)


@functools.cache
def params(spec):
    """Away from where they start, so that biases, scales and offsets matter."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(Decoder(spec).init, jax.random.key(0), TEXTS))
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def whole(spec, params, text_BL):
    return Decoder(spec).apply(params, text_BL)


# The reference, one text and one token at a time.


def normed(spec, p, x):
    if spec.norm == "layer":
        x = x - x.mean()
    y = x / np.sqrt((x**2).mean() + spec.epsilon)
    return y * (p["scale"] + spec.norm_offset) + p.get("bias", 0.0)


def linear(p, x):
    return np.tensordot(x, p["kernel"], x.ndim) + p.get("bias", 0.0)


def activated(name, x):
    if name == "silu":
        return x * expit(x)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turned(spec, x_K, place, local):
    """A head at a place, as complex numbers that turn."""
    half = len(x_K) // 2
    base = spec.local_base if local and spec.local_base else spec.rotary_base
    scaling = None if local and spec.local_base else spec.rotary_scaling
    y_K = np.zeros(half, complex)
    for k in range(half):
        speed = base ** (-k / half)
        if scaling is not None:
            speed = slowed(speed, scaling)
        y_K[k] = (x_K[k] + 1j * x_K[half + k]) * np.exp(1j * place * speed)
    return np.concatenate([y_K.real, y_K.imag])


def slowed(speed, scaling):
    if scaling["rope_type"] == "linear":
        return speed / scaling["factor"]
    wave, length = 2 * math.pi / speed, scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wave < length / high:
        return speed
    if wave > length / low:
        return speed / scaling["factor"]
    smooth = (length / wave - low) / (high - low)
    return (1 - smooth) * speed / scaling["factor"] + smooth * speed


def attended(spec, p, x_LD, local):
    found = []
    q_LAK, k_LGK, v_LGK = ([linear(p[name], x) for x in x_LD] for name in ("query", "key", "value"))
    for name, rows in (("query_norm", q_LAK), ("key_norm", k_LGK)):
        for place, row in enumerate(rows):
            heads = [normed(spec, p[name], head) if spec.qk_norm else head for head in row]
            rows[place] = [turned(spec, h, place, local) if spec.positions == "rotary" else h for h in heads]
    for place in range(len(x_LD)):
        o_AK = np.zeros((spec.heads, spec.head_size))
        first = max(0, place - spec.window + 1) if local else 0
        for head in range(spec.heads):
            group = head * spec.kv_heads // spec.heads
            scale = spec.query_scale or spec.head_size**-0.5
            logits = np.array([scale * q_LAK[place][head] @ k_LGK[s][group] for s in range(first, place + 1)])
            if spec.attention_cap:
                logits = spec.attention_cap * np.tanh(logits / spec.attention_cap)
            weights = np.exp(logits) / np.exp(logits).sum()
            for weight, s in zip(weights, range(first, place + 1), strict=True):
                o_AK[head] += weight * v_LGK[s][group]
        found.append(linear(p["out"], o_AK))
    return found


def mlp(spec, p, x):
    h = linear(p["mlp_in"], x)
    act = functools.partial(activated, spec.activation)
    return linear(p["mlp_out"], act(linear(p["mlp_gate"], x)) * h if spec.gated else act(h))


@functools.cache
def reference(spec):
    """Logits [B, L, V] of TEXTS."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params(spec)["params"])
    texts = []
    for text in TEXTS:
        x_LD = [p["words"]["table"][token] * spec.embed_scale for token in text]
        if spec.positions == "learned":
            x_LD = [x + place for x, place in zip(x_LD, p["positions"], strict=False)]
        for i in range(spec.layers):
            row = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
            local = spec.window > 0 and i % spec.global_every != spec.global_every - 1
            y_LD = attended(spec, row["attention"], [normed(spec, row["attention_norm"], x) for x in x_LD], local)
            after = row.get("attention_post_norm"), row.get("mlp_post_norm")
            x_LD = [x + (normed(spec, after[0], y) if spec.post_norms else y) for x, y in zip(x_LD, y_LD, strict=True)]
            y_LD = [mlp(spec, row, normed(spec, row["mlp_norm"], x)) for x in x_LD]
            x_LD = [x + (normed(spec, after[1], y) if spec.post_norms else y) for x, y in zip(x_LD, y_LD, strict=True)]
        head_DV = p["words"]["table"].T if spec.tied else p["head"]["kernel"]
        logits = np.stack([normed(spec, p["norm"], x) @ head_DV for x in x_LD])
        texts.append(spec.logit_cap * np.tanh(logits / spec.logit_cap) if spec.logit_cap else logits)
    return np.stack(texts)


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_the_formula(name):
    np.testing.assert_allclose(whole(SPECS[name], params(SPECS[name]), TEXTS), reference(SPECS[name]), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_one_token_after_another_has_the_formulas_logits(name):
    """Prompts of unequal lengths side by side, padded with what must not matter."""
    spec, rows, last = SPECS[name], np.arange(3), 9 - LENGTHS.max()
    start = jax.jit(functools.partial(Decoder(spec).apply, room=last, method="start"))
    advance = jax.jit(functools.partial(Decoder(spec).apply, method="advance"))

    def said(padding):
        prompts = np.where(np.arange(5) < LENGTHS[:, None], TEXTS[:, :5], padding)
        logits_BV, cache, seen = start(params(spec), prompts, LENGTHS)
        assert seen is None and cache.key_value[0].shape == (2, 3, 5 + last, spec.kv_heads, spec.head_size)
        found = [logits_BV]
        for i in range(last):
            logits_BV, cache = advance(params(spec), TEXTS[rows, LENGTHS + i], cache)
            found.append(logits_BV)
        np.testing.assert_array_equal(cache.used_B, LENGTHS + last)
        return np.stack(found, axis=1)

    places = LENGTHS[:, None] - 1 + np.arange(last + 1)
    np.testing.assert_allclose(said(0), reference(spec)[rows[:, None], places], atol=2e-4)
    np.testing.assert_array_equal(said(0), said(7))


@functools.cache
def value_and_gradients(name, **changes):
    spec = dataclasses.replace(SPECS[name], **changes)
    loss = jax.value_and_grad(lambda variables: jnp.sin(Decoder(spec).apply(variables, TEXTS)).sum())
    return flatten_paths(jax.jit(loss)(params(SPECS[name])))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"scan": False}, {"remat": "full"}, {"scan": False, "remat": "dots"}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_how_layers_run_changes_no_value_and_no_gradient(name, changes):
    found = value_and_gradients(name, **changes)
    for path, leaf in value_and_gradients(name).items():
        np.testing.assert_allclose(found[path], leaf, rtol=2e-4, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("name", SPECS)
def test_half_precision_stays_near(name):
    """Layers compute in bfloat16 with and without a cache; logits come in float32."""
    spec = dataclasses.replace(SPECS[name], dtype="bfloat16")
    shrunk = jax.tree.map(lambda leaf: leaf / 2, params(SPECS[name]))
    found, expected = whole(spec, shrunk, TEXTS), whole(SPECS[name], shrunk, TEXTS)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    start = jax.jit(functools.partial(Decoder(spec).apply, room=1, method="start"))
    advance = jax.jit(functools.partial(Decoder(spec).apply, method="advance"))
    _, cache, _ = start(shrunk, TEXTS[:, :8], np.full(3, 8))
    assert {x.dtype for x in cache.key_value} == {jnp.dtype("bfloat16")}
    last, _ = advance(shrunk, TEXTS[:, 8], cache)
    np.testing.assert_allclose(last, found[:, 8], atol=0.05 * np.abs(expected).max())


def test_parameters_have_their_places_and_logical_axes():
    """What files of weights and configs count on."""
    boxed = jax.eval_shape(Decoder(SPECS["llama"]).init, jax.random.key(0), TEXTS)["params"]
    found = {name: x.shape for name, x in flatten_paths(nn.unbox(boxed)).items()}
    assert found == {
        "words/table": (20, 16),
        "layers/attention_norm/scale": (2, 16),
        "layers/attention/query/kernel": (2, 16, 4, 4),
        "layers/attention/key/kernel": (2, 16, 2, 4),
        "layers/attention/value/kernel": (2, 16, 2, 4),
        "layers/attention/out/kernel": (2, 4, 4, 16),
        "layers/mlp_norm/scale": (2, 16),
        "layers/mlp_in/kernel": (2, 16, 24),
        "layers/mlp_gate/kernel": (2, 16, 24),
        "layers/mlp_out/kernel": (2, 24, 16),
        "norm/scale": (16,),
        "head/kernel": (16, 20),
    }
    assert boxed["layers"]["attention"]["key"]["kernel"].names == ("layers", "embed", "heads", "head_dim")
    gpt2 = flatten_paths(nn.unbox(params(SPECS["gpt2"])["params"]))
    assert gpt2["positions"].shape == (12, 16) and gpt2["layers/mlp_out/bias"].shape == (2, 16)
    assert not [name for name in gpt2 if "gate" in name or "head" in name]
    gemma = flatten_paths(nn.unbox(params(SPECS["gemma"])["params"]))
    assert gemma["layers/attention/query_norm/scale"].shape == (2, 6)
    assert gemma["layers/mlp_post_norm/scale"].shape == (2, 16)


def test_layers_are_born_different():
    fresh = nn.unbox(jax.jit(Decoder(SPECS["gemma"]).init)(jax.random.key(0), TEXTS))["params"]
    kernel = fresh["layers"]["mlp_in"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    assert 0.015 < kernel.std() < 0.025
    assert not fresh["layers"]["mlp_norm"]["scale"].any(), "with norm_offset, a scale of 1 is stored as 0"


def test_a_token_that_is_not_there_is_never_another_one():
    texts = TEXTS.copy()
    texts[0, 5] = 20
    found = whole(SPECS["llama"], params(SPECS["llama"]), texts)
    assert np.isnan(found[0, 5:]).all() and np.isfinite(found[1:]).all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"heads": 3}, "width 16 does not divide into 3 heads; change one, or set head_size"),
        ({"kv_heads": 3}, "heads 4 do not share 3 kv_heads evenly"),
        ({"head_size": 5}, "turn pairs of channels; language.head_size is 5, odd"),
        ({"layers": 0}, "language.layers is 0; it must be a whole number from 1 on"),
        ({"vocab": True}, "language.vocab is True; it must be a whole number from 1 on"),
        ({"window": -1}, "language.window is -1; it must be a whole number from 0 on"),
        ({"window": 4}, "language.window is 4, and global_every=1 makes no layer local"),
        ({"activation": "mish"}, "language.activation is 'mish'; it is one of gelu, quick_gelu, gelu_tanh"),
        ({"positions": "sincos"}, "language.positions is 'sincos'; it is one of learned, rotary"),
        ({"norm": "batch"}, "language.norm is 'batch'; it is one of layer, rms"),
        ({"norm": "layer", "norm_offset": True}, "norm_offset is for norm='rms'"),
        ({"epsilon": 0.0}, "language.epsilon is 0.0; it must be a positive number"),
        ({"rotary_base": 0}, "language.rotary_base is 0; it must be a positive number"),
        ({"embed_scale": "sqrt"}, "language.embed_scale is 'sqrt'; it must be a positive number"),
        ({"logit_cap": -30.0}, "language.logit_cap is -30.0; it is a number above 0, or 0 for none"),
        ({"local_base": None}, "language.local_base is None; it is a number above 0, or 0 for none"),
        ({"rotary_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn'; it is one of linear, llama3"),
        ({"rotary_scaling": LLAMA3}, "'llama3' needs .* it lacks original_max_position_embeddings"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(PLAIN, **{"head_size": 0, "kv_heads": 0, **changes})


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a text of 13 tokens is longer than the 12 .*max_length.*text_length"):
        jax.eval_shape(Decoder(PLAIN).init, jax.random.key(0), np.ones((1, 13), np.int32))
    start = functools.partial(Decoder(PLAIN).apply, room=4, method="start")
    with pytest.raises(ValueError, match="a prompt of 9 tokens and 4 new ones do not fit into the 12"):
        jax.eval_shape(start, params(PLAIN), TEXTS, LENGTHS)


def test_specs_are_keys():
    """Equal settings are one setting, whatever mapping they came in."""
    one = dataclasses.replace(PLAIN, rotary_scaling={"factor": 2.0, "rope_type": "linear"})
    other = dataclasses.replace(PLAIN, rotary_scaling={"rope_type": "linear", "factor": 2.0})
    assert one == other and hash(one) == hash(other) and len({one, other, PLAIN}) == 2
