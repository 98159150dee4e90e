"""A language model by itself learns texts, knows how likely they are, and asks of no token what comes after it."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from vidlang.core.tree import flatten_paths
from vidlang.models.language import Model, Output
from vidlang.nn.generation import Decoding
from vidlang.objectives import captioning
from vidlang.ops.dials import OFF
from vidlang.train.optimizer import make_optimizer
from vidlang.train.step import TrainState, make_train_step

LANGUAGE = {"layers": 2, "width": 16, "heads": 2, "mlp": 24, "vocab": 24, "max_length": 12, "dtype": "float32"}
MODEL = Model(language=LANGUAGE)
RNG = np.random.default_rng(0)
TEXTS = RNG.integers(2, 24, (6, 10)).astype(np.int32)
TEXTS[1, 7:], TEXTS[4, 4:] = 0, 0
LENGTHS = np.array([10, 7, 10, 10, 4, 10])
INIT = functools.partial(MODEL.init, train=False)


@functools.cache
def born():
    return nn.unbox(jax.jit(INIT)(jax.random.key(0), TEXTS))


@functools.cache
def grown():
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (x + 0.4 * rng.normal(size=x.shape)).astype(np.float32), born())


@jax.jit
def logits(variables, texts):
    return MODEL.apply(variables, texts, train=False).caption_BLV


def compiled(method, **options):
    return jax.jit(functools.partial(MODEL.apply, method=method, **options))


def test_a_token_matters_to_itself_and_what_follows_only():
    texts = np.repeat(TEXTS[:1], 11, axis=0)
    texts[np.arange(10), np.arange(10)] = 1  # row l has another token at place l, the last row none
    found = np.asarray(logits(grown(), texts))
    changed = np.abs(found[:10] - found[10]).max(axis=-1) > 0
    np.testing.assert_array_equal(changed, np.triu(np.ones((10, 10), bool)))


def test_all_its_parameters_lie_under_language():
    assert {name.split("/")[0] for name in flatten_paths(born()["params"])} == {"language"}
    assert MODEL.vocab == 24 and MODEL.inputs == ("text_BL",)


@pytest.mark.slow
def test_it_learns_to_go_on_from_prompts():
    """Only what follows a prompt is learned, and it is: greedy texts are then those that were trained on."""
    batch = {"text_BL": TEXTS, "prompt_B": np.array([3, 2, 3, 3, 2, 3], np.int32)}
    optimizer = make_optimizer(born()["params"], total_steps=60, batch_size=6, learning_rate=0.02, schedule="constant")
    step = jax.jit(make_train_step(MODEL, optimizer, captioning.loss, {}, dials=OFF, seed=0))
    state = TrainState(np.int32(0), born()["params"], optimizer.transform.init(born()["params"]))
    for _ in range(60):
        state, scalars = step(state, batch)
    assert scalars["loss"] < 0.1 and scalars["accuracy"] == 1
    made = compiled("generate", settings=Decoding(max_new=2))({"params": state.params}, TEXTS[:, :3], batch["prompt_B"])
    for row in range(6):
        prompt = batch["prompt_B"][row]
        assert made.tokens_BSN[row, 0].tolist() == TEXTS[row, prompt : prompt + 2].tolist()


@pytest.mark.slow
def test_prompts_get_no_gradient_from_what_is_asked_of_them():
    def loss(logits_BLV, prompt):
        return captioning.loss(Output(logits_BLV), {"text_BL": TEXTS, "prompt_B": np.full(6, prompt)})[0]

    for prompt in (1, 4):
        grads = np.abs(jax.grad(loss)(logits(grown(), TEXTS), prompt)).max(axis=-1) > 0
        asked = (np.arange(1, 11) >= prompt) & (np.arange(1, 11) < LENGTHS[:, None])
        np.testing.assert_array_equal(grads, asked)


def test_a_text_is_as_likely_as_its_tokens():
    plain = np.asarray(logits(grown(), TEXTS), np.float64)
    log_p = plain - np.log(np.exp(plain).sum(axis=-1, keepdims=True))
    prompts = np.array([0, 1, 3, 9, 4, 10])
    found = compiled("likelihood")(grown(), TEXTS, prompts)
    for row, (first, last) in enumerate(zip(prompts, LENGTHS, strict=True)):
        own = [log_p[row, place - 1, TEXTS[row, place]] for place in range(max(first, 1), last)]
        np.testing.assert_allclose(found[row], [sum(own), len(own)], rtol=1e-5, atol=1e-6)


def test_with_a_cache_it_says_what_it_says_without():
    whole, rows = logits(grown(), TEXTS), np.arange(6)
    lengths = np.array([1, 3, 2, 5, 4, 3])
    found, state = compiled("start", room=4)(grown(), TEXTS[:, :5], lengths)
    advance = compiled("advance")
    for i in range(4):
        np.testing.assert_allclose(found, whole[rows, lengths - 1 + i], atol=1e-4)
        found, state = advance(grown(), TEXTS[rows, lengths + i], state)
    np.testing.assert_array_equal(state.cache.used_B, lengths + 4)
    assert state.seen is None


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="model.language has an unknown key 'depth'"):
        jax.eval_shape(
            functools.partial(Model(language={**LANGUAGE, "depth": 2}).init, train=False), jax.random.key(0), TEXTS
        )
    generate = functools.partial(MODEL.apply, method="generate", settings=Decoding(max_new=8))
    with pytest.raises(ValueError, match="a prompt of 5 tokens and 8 new ones do not fit into the 12"):
        jax.eval_shape(generate, grown(), TEXTS[:, :5], np.full(6, 5))
