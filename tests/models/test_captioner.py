"""A captioner is its language model until it has learned, says with a cache what it says without, and stays frozen."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.models.captioner import Model
from vidlang.models.language import Model as Language
from vidlang.nn.generation import Decoding
from vidlang.nn.slicing import slice_params
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
def born(model):
    return nn.unbox(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), CLIPS, TEXTS))


@remembered
def grown(model):
    """Parameters away from where they start, gates open."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32), born(model))


@remembered
def forward(model):
    """Compiled: (variables, clips, texts) -> logits."""
    return jax.jit(lambda variables, clips, texts: model.apply(variables, clips, texts, train=True).caption_BLV)


def logits(model, variables, clips=CLIPS, texts=TEXTS):
    return np.asarray(forward(model)(variables, clips, texts))


def compiled(model, method, **options):
    return jax.jit(functools.partial(model.apply, method=method, **options))


@remembered
def seen(model):
    """What `see` gives of the clips under grown parameters."""
    return compiled(model, "see")(grown(model), CLIPS)


@pytest.mark.slow
def test_at_birth_it_is_its_language_model():
    alone = jax.jit(lambda p: Language(language=LANGUAGE).apply({"params": p}, TEXTS, train=False).caption_BLV)
    language = born()["params"]["language"]
    np.testing.assert_array_equal(logits(MODEL, born()), alone({"language": language}))
    shut = {"params": {**grown()["params"], "cross": born()["params"]["cross"]}}
    assert np.abs(logits(MODEL, grown()) - logits(MODEL, shut)).max() > 0.1


def test_it_looks_at_its_own_video():
    other = logits(MODEL, grown(), CLIPS[::-1])
    assert (np.abs(other - logits(MODEL, grown())).max(axis=(1, 2)) > 1e-2).all()
    alone = CLIPS.copy()
    alone[3] = CLIPS[0]
    changed = np.abs(logits(MODEL, grown(), alone) - logits(MODEL, grown())).max(axis=(1, 2)) > 1e-3
    assert changed.tolist() == [row == 3 for row in range(8)]


UNROLLED = {**LANGUAGE, "scan": False, "positions": "learned", "norm": "layer", "gated": False}


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, MODEL.clone(language=UNROLLED)], ids=["scanned", "unrolled"])
def test_with_a_cache_it_says_what_it_says_without(model):
    """Rows of unequal prompts side by side."""
    whole, rows = logits(model, grown(model)), np.arange(8)
    prompts = np.where(np.arange(6) < LENGTHS[:, None], TEXTS[:, :6], 0)
    found, state = compiled(model, "start", room=6)(grown(model), prompts, LENGTHS, seen(model))
    np.testing.assert_allclose(found, whole[rows, LENGTHS - 1], atol=1e-4)
    advance = compiled(model, "advance")
    for i in range(6):
        found, state = advance(grown(model), TEXTS[rows, LENGTHS + i], state)
        np.testing.assert_allclose(found, whole[rows, LENGTHS + i], atol=1e-4)


def test_states_of_other_rows_go_on_as_theirs():
    """What beams do: rows repeat, of the same videos in the same order or of others."""
    state = compiled(MODEL, "start", room=2)(grown(), TEXTS[:, :4], np.full(8, 4), seen())[1]
    advance, token = compiled(MODEL, "advance"), TEXTS[:, 4]
    plain, _ = advance(grown(), token, state)
    parent = jnp.array([1, 1, 0, 7, 2, 2, 3, 5])
    found, after = advance(grown(), token[parent], state.rows(parent))
    np.testing.assert_allclose(found, plain[parent], rtol=1e-5, atol=1e-5)
    kept = state.rows(parent, same_video=True)
    jax.tree.map(np.testing.assert_array_equal, kept.seen, state.seen)
    assert np.abs(advance(grown(), token[parent], kept)[0] - found).max() > 1e-3
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_it_makes_the_text_that_asking_again_and_again_makes():
    prompts = np.where(np.arange(6) < LENGTHS[:, None], TEXTS[:, :6], 0)
    made = compiled(MODEL, "generate", settings=Decoding(max_new=6))(grown(), seen(), prompts, LENGTHS)
    texts, rows = np.pad(prompts, ((0, 0), (0, 6))), np.arange(8)
    for i in range(6):
        texts[rows, LENGTHS + i] = logits(MODEL, grown(), CLIPS, texts)[rows, LENGTHS + i - 1].argmax(axis=-1)
    for row in range(8):
        assert texts[row, LENGTHS[row] : LENGTHS[row] + 6].tolist() == made.tokens_BSN[row, 0].tolist()


def test_a_text_is_as_likely_as_its_tokens():
    prompt_B = np.array([1, 2, 3, 4, 5, 6, 7, 8])
    texts = TEXTS.copy()
    texts[:, 10:] = 0
    found = compiled(MODEL, "likelihood")(grown(), seen(), texts, prompt_B)
    plain = logits(MODEL, grown(), CLIPS, texts).astype(np.float64)
    log_p = plain - np.log(np.exp(plain).sum(axis=-1, keepdims=True))
    for row in range(8):
        own = [log_p[row, place - 1, texts[row, place]] for place in range(prompt_B[row], 10)]
        np.testing.assert_allclose(found[row], [sum(own), len(own)], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"pool_time": False}, {"resampler": None}, {"cross": {"every": 4, "heads": 2}}])
def test_parts_can_be_left_out(changes):
    model = MODEL.clone(**changes)
    assert np.isfinite(logits(model, grown(model))).all()


def test_time_is_averaged_at_each_place_over_what_a_mask_left():
    model, dials = MODEL.clone(resampler=None), Dials(mask=0.3)
    rngs = streams(jax.random.key(3))
    found = compiled(model, "see", dials=dials)(grown(model), CLIPS, rngs=rngs)

    def encode(model, clips):
        return model.video_encoder(clips, train=False, dials=dials)

    tokens = compiled(model, encode)(grown(model), CLIPS, rngs=rngs)
    assert found.shape == (8, 4, 16) and tokens.tokens_BMD.shape[1] < 8
    for row in range(8):
        own, kept = np.asarray(tokens.tokens_BMD[row]), np.asarray(tokens.kept_BM[row])
        for place in range(4):
            expected = own[kept % 4 == place] if (kept % 4 == place).any() else own
            np.testing.assert_allclose(found[row, place], expected.mean(axis=0), atol=1e-5)


def test_a_longer_video_is_as_many_latents():
    longer = np.tile(CLIPS[:2], (1, 2, 1, 1, 1))
    both = [
        jax.eval_shape(functools.partial(MODEL.init, train=False), jax.random.key(0), clips, TEXTS[:2])
        for clips in (CLIPS[:2], longer)
    ]
    sees = [
        jax.eval_shape(functools.partial(MODEL.apply, method="see"), variables, clips)
        for variables, clips in zip(both, (CLIPS[:2], longer), strict=True)
    ]
    assert [(x.shape, x.dtype) for x in sees] == [((2, 3, 24), jnp.float32)] * 2


@pytest.mark.slow
def test_a_model_that_was_cut_out_is_the_big_one_at_those_widths():
    widths = (16, 8)
    dialled = jax.jit(lambda p: MODEL.apply(p, CLIPS, TEXTS, train=False, dials=Dials(widths=widths)).caption_BLV)
    small, params = slice_params(MODEL, grown()["params"], widths, CLIPS, TEXTS)
    np.testing.assert_allclose(logits(small, {"params": params}), dialled(grown()), rtol=1e-4, atol=1e-4)
    assert np.abs(dialled(grown()) - logits(MODEL, grown())).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, params["language"], grown()["params"]["language"])


@pytest.mark.slow
def test_half_precision_stays_near():
    """Everything in bfloat16, as recipes have it; what was seen serves as well as the clips themselves."""
    half = {"dtype": "bfloat16"}
    video = {**VIDEO, "transformer": {**VIDEO["transformer"], **half}}
    model = MODEL.clone(video=video, language={**LANGUAGE, **half}, resampler={**RESAMPLER, **half})
    found, expected = logits(model, grown()), logits(MODEL, grown())
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()
    looked = compiled(model, "see")(grown(), CLIPS)
    assert looked.dtype == np.float32
    first, state = compiled(model, "start", room=1)(grown(), TEXTS[:, :8], np.full(8, 8), looked)
    second, _ = compiled(model, "advance")(grown(), TEXTS[:, 8], state)
    for place, logits_BV in ((7, first), (8, second)):
        assert np.abs(logits_BV - found[:, place]).mean() < 0.02 * np.abs(expected).mean()


def train_step(model, variables):
    options = {"total_steps": 3, "batch_size": 8, "learning_rate": 0.05, "weight_decay": 0.1}
    optimizer = make_optimizer(variables["params"], freeze_rows=model.frozen, **options)
    step = make_train_step(model, optimizer, captioning.loss, {}, dials=Dials(), seed=0)
    trained, _ = optimizer.split(variables["params"])
    # The step may consume what it is given.
    copy = jax.tree.map(jnp.array, variables["params"])
    return step, TrainState(jnp.int32(0), copy, optimizer.transform.init(trained))


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_what_is_frozen_can_be_said():
    assert MODEL.frozen == {"^video_encoder/": None, "^language/": None}
    assert MODEL.clone(train_language=True).frozen == {"^video_encoder/": None}
    first = {**VIDEO, "transformer": {**VIDEO["transformer"], "frozen_layers": 1}}
    partly = MODEL.clone(train_video=True, video=first).frozen
    assert partly == {
        "^video_encoder/(patch|image_patch|views|temporal|spatial|positions)(/|$)": None,
        "^video_encoder/stack/layers/": 1,
        "^language/": None,
    }


@pytest.mark.slow
@pytest.mark.parametrize("thawed", ["train_video", "train_language"])
def test_what_is_not_frozen_learns_too(thawed):
    model = MODEL.clone(**{thawed: True})
    step, state = train_step(model, grown())
    state, _ = jax.jit(step)(state, {"video_BTHWC": CLIPS, "text_BL": TEXTS})
    parts = {"train_video": "video_encoder", "train_language": "language"}
    for name, part in parts.items():
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params[part], grown()["params"][part])
        assert all(jax.tree.leaves(moved)) if name == thawed else not any(jax.tree.leaves(moved)), moved


def refused(match, model, *inputs):
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), *(inputs or (CLIPS, TEXTS)))


def test_what_cannot_be_is_said():
    refused("every is 3, and the language model's 4 layers do not divide", MODEL.clone(cross={"every": 3}))
    refused("a text of 25 tokens is longer than the 24", MODEL, CLIPS, np.ones((8, 25), np.int32))
    refused("8 clips and 3 texts", MODEL, CLIPS, TEXTS[:3])
    refused("model.cross has an unknown key 'evry'.*'every'", MODEL.clone(cross={"evry": 2}))
    refused("model.resampler has an unknown key 'depth'", MODEL.clone(resampler={"depth": 2}))
    refused("model.language has an unknown key 'depth'", MODEL.clone(language={**LANGUAGE, "depth": 2}))
    views = {**VIDEO, "views": ({"size": (2, 8, 8), "stride": (2, 8, 8)},), "positions": "sincos"}
    refused("views .* share no places; set pool_time=False", MODEL.clone(video=views))
    start = functools.partial(MODEL.apply, room=13, method="start")
    with pytest.raises(ValueError, match="a prompt of 12 tokens and 13 new ones do not fit into the 24"):
        jax.eval_shape(start, grown(), TEXTS, LENGTHS, jnp.zeros((8, 3, 24)))
    plain = MODEL.clone(resampler=None)
    with pytest.raises(ValueError, match="all 16 channels of the video encoder; found the 8 that the dial widths"):
        jax.eval_shape(functools.partial(plain.apply, method="see", dials=Dials(widths=(8, 8))), born(plain), CLIPS)
