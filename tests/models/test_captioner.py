"""A captioner is its language model until it has learned, says with a cache what it says without, and stays frozen."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models.captioner import Model
from vidlang.models.language import Model as Language
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.generation import Decoding
from vidlang.objectives import captioning
from vidlang.ops.dials import Dials, streams
from vidlang.train.optimizer import make_optimizer
from vidlang.train.step import TrainState, make_train_step

LANGUAGE = {"layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 40, "max_length": 24}
LANGUAGE |= {"dtype": "float32"}
VIDEO = {"transformer": {"layers": 2, "width": 16, "heads": 2, "mlp": 32, "dtype": "float32"}, "tubelet": (2, 8, 8)}
RESAMPLER = {"layers": 2, "width": 24, "heads": 2, "mlp": 32, "latents": 3, "dtype": "float32"}
MODEL = Model(video=VIDEO, language=LANGUAGE, resampler=RESAMPLER, cross={"every": 2})
RNG = np.random.default_rng(0)
CLIPS = RNG.integers(0, 256, (8, 4, 16, 16, 3)).astype(np.uint8)
TEXTS = RNG.integers(1, 40, (8, 12)).astype(np.int32)
LENGTHS = np.array([3, 6, 1, 5, 2, 6, 4, 3], np.int32)


def remembered(function):
    """Once for each model; modules with mappings in them cannot be keys themselves."""
    found = {}

    @functools.wraps(function)
    def call(model=MODEL):
        if str(model) not in found:
            found[str(model)] = function(model)
        return found[str(model)]

    return call


@remembered
def boxed(model):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), CLIPS, TEXTS)


@remembered
def born(model):
    return nn.unbox(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), CLIPS, TEXTS))


@remembered
def grown(model):
    """Parameters away from where they start, gates open."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32), born(model))


def logits(model, variables, **options):
    return model.apply(variables, CLIPS, TEXTS, train=True, **options).caption_BLV


def test_at_birth_it_is_its_language_model():
    language = {"params": {"language": born()["params"]["language"]}}
    alone = Language(language=LANGUAGE).apply(language, TEXTS, train=False).caption_BLV
    np.testing.assert_array_equal(logits(MODEL, born()), alone)
    assert (
        np.abs(
            logits(MODEL, grown())
            - logits(MODEL, {"params": {**grown()["params"], "cross": born()["params"]["cross"]}})
        ).max()
        > 0.1
    )


def test_it_looks_at_its_own_video():
    other = MODEL.apply(grown(), CLIPS[::-1], TEXTS, train=True).caption_BLV
    assert np.abs(other - logits(MODEL, grown())).max() > 1e-2


@pytest.mark.parametrize("model", [MODEL, MODEL.clone(language={**LANGUAGE, "scan": False, "positions": "learned"})])
def test_with_a_cache_it_says_what_it_says_without(model):
    """Rows of unequal prompts side by side."""
    whole = logits(model, grown(model))
    seen = model.apply(grown(model), CLIPS, method="see")
    prompts = np.where(np.arange(6) < LENGTHS[:, None], TEXTS[:, :6], 0)
    rows = np.arange(8)
    found, state = model.apply(grown(model), prompts, LENGTHS, seen, room=6, method="start")
    np.testing.assert_allclose(found, whole[rows, LENGTHS - 1], atol=1e-4)
    for i in range(6):
        found, state = model.apply(grown(model), TEXTS[rows, LENGTHS + i], state, method="advance")
        np.testing.assert_allclose(found, whole[rows, LENGTHS + i], atol=1e-4)


def test_it_makes_the_text_that_asking_again_and_again_makes():
    model, variables = MODEL, grown()
    seen = model.apply(variables, CLIPS, method="see")
    prompts = np.where(np.arange(6) < LENGTHS[:, None], TEXTS[:, :6], 0)
    made = jax.jit(lambda p: model.apply(variables, seen, p, LENGTHS, settings=Decoding(max_new=6), method="generate"))
    found = made(prompts).tokens_BSN[:, 0]
    for row in (0, 1, 5):
        text = list(TEXTS[row, : LENGTHS[row]])
        for _ in range(6):
            one = model.apply(variables, CLIPS[row : row + 1], np.array([text]), train=False).caption_BLV
            text.append(int(one[0, -1].argmax()))
        assert text[LENGTHS[row] :] == found[row].tolist()


def test_a_text_is_as_likely_as_its_tokens():
    prompt_B = np.array([1, 2, 3, 4, 5, 6, 7, 8])
    texts = TEXTS.copy()
    texts[:, 10:] = 0
    found = MODEL.apply(grown(), MODEL.apply(grown(), CLIPS, method="see"), texts, prompt_B, method="likelihood")
    log_p = np.asarray(jax.nn.log_softmax(MODEL.apply(grown(), CLIPS, texts, train=False).caption_BLV), np.float64)
    for row in range(8):
        own = [log_p[row, place - 1, texts[row, place]] for place in range(prompt_B[row], 10)]
        np.testing.assert_allclose(found[row], [sum(own), len(own)], rtol=1e-5)


@pytest.mark.parametrize("changes", [{"pool_time": False}, {"resampler": None}, {"cross": {"every": 4, "heads": 2}}])
def test_parts_can_be_left_out(changes):
    model = MODEL.clone(**changes)
    assert np.isfinite(logits(model, grown(model))).all()


def test_time_is_averaged_at_each_place_over_what_a_mask_left():
    model = MODEL.clone(resampler=None)
    rngs = streams(jax.random.key(3))
    found = model.apply(grown(model), CLIPS, dials=Dials(mask=0.3), method="see", rngs=rngs)
    seen = model.apply(
        grown(model), CLIPS, method=lambda m, x: m.video_encoder(x, train=False, dials=Dials(mask=0.3)), rngs=rngs
    )
    assert found.shape == (8, 4, 16) and seen.tokens_BMD.shape[1] < 8
    for row in range(8):
        for place in range(4):
            own = [
                token for token, kept in zip(seen.tokens_BMD[row], seen.kept_BM[row], strict=True) if kept % 4 == place
            ]
            expected = np.mean(own or list(seen.tokens_BMD[row]), axis=0)
            np.testing.assert_allclose(found[row, place], expected, atol=1e-5)


def train_step(model, variables):
    options = {"total_steps": 3, "batch_size": 8, "learning_rate": 0.05, "weight_decay": 0.1}
    optimizer = make_optimizer(variables["params"], freeze_rows=model.frozen, **options)
    step = make_train_step(model, optimizer, captioning.loss, {}, dials=Dials(), seed=0)
    trained, _ = optimizer.split(variables["params"])
    # The step may consume what it is given.
    copy = jax.tree.map(jnp.array, variables["params"])
    return step, TrainState(jnp.int32(0), copy, optimizer.transform.init(trained))


def test_what_is_frozen_stays_bit_for_bit_and_what_is_new_learns():
    step, state = train_step(MODEL, born())
    step, losses = jax.jit(step), []
    for _ in range(3):
        state, scalars = step(state, {"video_BTHWC": CLIPS, "text_BL": TEXTS})
        losses.append(float(scalars["loss"]))
    assert losses[-1] < losses[0]
    for part in ("video_encoder", "language"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], born()["params"][part])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["cross"], born()["params"]["cross"])
    assert moved["layers"]["attention_open"] and moved["layers"]["mlp_open"]
    names = {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state[1].mu)}
    assert names == {"resampler", "cross"}


def test_frozen_parts_take_less_memory_in_training():
    big = {**VIDEO, "tubelet": (1, 4, 4), "transformer": {**VIDEO["transformer"], "layers": 6, "mlp": 256}}
    sizes = []
    for thawed in (False, True):
        model = MODEL.clone(video=big, train_video=thawed, train_language=thawed)
        variables = nn.unbox(
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), CLIPS, TEXTS)
        )
        step, state = train_step(model, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables))
        shapes = jax.eval_shape(lambda: {"video_BTHWC": jnp.asarray(CLIPS), "text_BL": jnp.asarray(TEXTS)})
        sizes.append(jax.jit(step).lower(state, shapes).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[0] < 0.6 * sizes[1], sizes


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_eight_devices_say_what_one_does(sizes):
    def loss(variables, batch):
        out = MODEL.apply(variables, batch["video"], batch["text"], train=True)
        return captioning.loss(out, {"text_BL": batch["text"]})[0]

    def speak(variables, batch):
        seen = MODEL.apply(variables, batch["video"], method="see")
        how = Decoding("beam", beams=2, max_new=4, stop_ids=(7,))
        made = MODEL.apply(variables, seen, batch["text"][:, :4], batch["length"], settings=how, method="generate")
        return made.tokens_BSN, made.score_BS

    batch = {"video": CLIPS, "text": TEXTS, "length": np.minimum(LENGTHS, 4)}
    expected, said = jax.jit(jax.value_and_grad(loss))(grown(), batch), jax.jit(speak)(grown(), batch)
    mesh = make_mesh(sizes)
    with use_mesh(mesh):
        placed = jax.device_put(grown(), tree_shardings(boxed(), mesh))
        here = put_batch(batch, mesh)
        found, spoken = jax.jit(jax.value_and_grad(loss))(placed, here), jax.jit(speak)(placed, here)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
    np.testing.assert_array_equal(said[0], spoken[0])
    np.testing.assert_allclose(said[1], spoken[1], rtol=1e-4)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="every is 3, and the language model's 4 layers do not divide"):
        MODEL.clone(cross={"every": 3}).init(jax.random.key(0), CLIPS, TEXTS, train=False)
    with pytest.raises(ValueError, match="a text of 25 tokens is longer than the 24"):
        MODEL.apply(born(), CLIPS, np.ones((8, 25), np.int32), train=False)
    seen = MODEL.apply(born(), CLIPS, method="see")
    with pytest.raises(ValueError, match="a prompt of 12 tokens and 13 new ones do not fit into the 24"):
        MODEL.apply(born(), TEXTS, LENGTHS, seen, room=13, method="start")
    with pytest.raises(ValueError, match="8 clips and 3 texts"):
        MODEL.apply(born(), CLIPS, TEXTS[:3], train=False)
    spec = DecoderSpec(**LANGUAGE)
    with pytest.raises(ValueError, match="heads 4 do not share 3 kv_heads"):
        dataclasses.replace(spec, kv_heads=3)
    with pytest.raises(ValueError, match="decoding.samples is 3, and greedy search gives 1"):
        Decoding(samples=3)
