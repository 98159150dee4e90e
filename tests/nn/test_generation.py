"""Real language models make the same texts with a cache and without, beside others and alone, on any devices."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models import captioner, language
from vidlang.nn.generation import Decoding, generate

SHAPE = {"layers": 2, "width": 16, "heads": 4, "mlp": 24, "vocab": 32, "max_length": 20, "dtype": "float32"}
GPT2 = {"norm": "layer", "positions": "learned", "activation": "gelu_tanh", "gated": False, "mlp_bias": True}
WINDOWS = {"kv_heads": 2, "window": 3, "global_every": 2, "attention_cap": 5.0, "logit_cap": 8.0, "qk_norm": True}
VIDEO = {"transformer": {"layers": 1, "width": 8, "heads": 2, "mlp": 16, "dtype": "float32"}, "tubelet": (2, 8, 8)}
MODELS = {
    "gpt2": language.Model(language={**SHAPE, **GPT2}),
    "grouped": language.Model(language={**SHAPE, "kv_heads": 1, "tied": False}),
    "windows": language.Model(language={**SHAPE, **WINDOWS}),
    "captioner": captioner.Model(video=VIDEO, language=SHAPE, resampler=None),
}
HOW = {"greedy": {}, "beam": {"beams": 3, "samples": 2}, "nucleus": {"samples": 2, "top_p": 0.9}}
RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (8, 4, 16, 16, 3)).astype(np.uint8)
LENGTHS = np.array([3, 6, 1, 5, 2, 6, 4, 3], np.int32)
PROMPTS = np.where(np.arange(6) < LENGTHS[:, None], RNG.integers(1, 31, (8, 6)), 0).astype(np.int32)
ROWS = np.array([5, 0, 3, 9, 12, 1, 2, 7], np.int32)


@functools.cache
def parameters(name):
    """Away from where they start, gates open."""
    model, inputs = MODELS[name], {"text_BL": PROMPTS, "video_BTHWC": CLIPS}
    init = functools.partial(model.init, train=False)
    born = nn.unbox(jax.jit(init)(jax.random.key(0), *(inputs[field] for field in model.inputs)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (x + 0.4 * rng.normal(size=x.shape)).astype(np.float32), born)


def settings(how):
    return Decoding(how, max_new=8, min_new=2, stop_ids=tuple(range(1, 32, 4)), **HOW[how])


def made(name, how, variables, batch):
    """Texts by the model itself, with its cache."""
    model = MODELS[name]
    seen = (model.apply(variables, batch["clips"], method="see"),) if name == "captioner" else ()
    given = batch["prompts"], batch["lengths"], batch["rows"]
    return model.apply(variables, *seen, *given, settings=settings(how), method="generate")


@flax.struct.dataclass
class Texts:
    """All that is known without a cache."""

    text_RL: jax.Array
    used_R: jax.Array
    clips: jax.Array

    def rows(self, parent_R, *, same_video=False):
        return Texts(self.text_RL[parent_R], self.used_R[parent_R], self.clips[parent_R])


def remade(name, how, variables, batch):
    """The same search, by the model as it is trained, over the whole text again for each token."""
    model = MODELS[name]

    def ask(texts):
        inputs = (texts.clips, texts.text_RL) if name == "captioner" else (texts.text_RL,)
        logits_RLV = model.apply(variables, *inputs, train=False).caption_BLV
        return logits_RLV[jnp.arange(len(texts.used_R)), texts.used_R - 1], texts

    def start(prompts, lengths):
        return ask(Texts(jnp.pad(prompts, ((0, 0), (0, 8))), lengths, batch["clips"]))

    def advance(token_R, texts):
        text_RL = texts.text_RL.at[jnp.arange(len(token_R)), texts.used_R].set(token_R)
        return ask(Texts(text_RL, texts.used_R + 1, texts.clips))

    return generate(start, advance, batch["prompts"], batch["lengths"], settings(how), batch["rows"])


def batch(rows=slice(None), longest=6):
    return {
        "prompts": jnp.asarray(PROMPTS[rows, :longest]),
        "lengths": jnp.asarray(LENGTHS[rows]),
        "rows": jnp.asarray(ROWS[rows]),
        "clips": jnp.asarray(CLIPS[rows]),
    }


def assert_same(one, other):
    np.testing.assert_array_equal(one.tokens_BSN, other.tokens_BSN)
    np.testing.assert_array_equal(one.length_BS, other.length_BS)
    np.testing.assert_allclose(one.score_BS, other.score_BS, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", MODELS)
def test_with_a_cache_and_without_the_texts_are_the_same(name, how):
    found = jax.jit(functools.partial(made, name, how))(parameters(name), batch())
    assert_same(found, jax.jit(functools.partial(remade, name, how))(parameters(name), batch()))
    assert len(set(found.length_BS.reshape(-1).tolist())) > 1
    assert len(np.unique(found.tokens_BSN)) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [*(("windows", how) for how in HOW), ("captioner", "beam")])
def test_beside_others_and_alone_the_texts_are_the_same(name, how):
    """Prompts of unequal lengths side by side, and a prompt without padding."""
    search = jax.jit(functools.partial(made, name, how))
    whole = search(parameters(name), batch())
    for row in (0, 1, 2):
        alone = search(parameters(name), batch(slice(row, row + 1), LENGTHS[row]))
        assert_same(alone, jax.tree.map(lambda x, row=row: x[row : row + 1], whole))


@pytest.mark.parametrize("how", HOW)
def test_on_eight_devices_the_texts_are_those_of_one(how):
    name = "gpt2"
    expected = jax.jit(functools.partial(made, name, how))(parameters(name), batch())
    boxed = jax.eval_shape(functools.partial(MODELS[name].init, train=False), jax.random.key(0), PROMPTS)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use_mesh(mesh):
        placed = jax.device_put(parameters(name), tree_shardings(boxed, mesh))
        found = jax.jit(functools.partial(made, name, how))(placed, put_batch(jax.device_get(batch()), mesh))
    assert_same(jax.device_get(found), expected)
