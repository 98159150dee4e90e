"""The fusion model: pairs that are drawn rightly, in parts, in pieces and on eight devices the same function."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core import tree
from vidlang.core.sharding import make_mesh, put_batch, tree_shardings, use_mesh
from vidlang.models import dual_encoder
from vidlang.models.fusion import Model, Output
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import OFF, Dials, streams

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 32, "dtype": "float32", "scan": False}
BASE: dict[str, Any] = {
    "video": {"transformer": TRANSFORMER | {"width": 16}, "tubelet": (2, 8, 8), "pool": "cls"},
    "text": {"vocab": 20, "max_length": 10, "transformer": TRANSFORMER | {"layers": 1}, "pool": "cls"},
    "embed": 8,
    "temperature": {"init": 0.5, "max_scale": 100.0, "learnable": True},
}
FUSION = {"fusion": {"layers": 2}, "words": {"rate": 0.5, "mask_id": 4}}
BATCH = 8
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (BATCH, 4, 16, 16, 3)).astype(np.uint8)  # 2 x 2 x 2 tokens
TEXT = RNG.integers(5, 20, (BATCH, 6)).astype(np.int32)
TEXT[2, 4:], TEXT[5, 3:] = 0, 0
# Rows 1 and 6 say the same, rows 3 and 4 show the same.
TEXT[6], VIDEO[4] = TEXT[1], VIDEO[3]
NO_NEGATIVE = {1: {1, 6}, 6: {1, 6}, 3: {3, 4}, 4: {3, 4}}
RNGS = streams(jax.random.key(1))
ALL = Dials(
    mask=0.25, widths=(16, 8), edges={"local": 1, "random": 1, "block": 2}, keep={0: 0.7}, keep_text=((0, 0.6),)
)


def make(**changes: Any) -> Model:
    return Model(**BASE, **FUSION | changes)


@functools.cache
def boxed() -> Any:
    return jax.eval_shape(functools.partial(make().init, train=False), jax.random.key(0), VIDEO, TEXT)


@functools.cache
def params() -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), nn.unbox(boxed()))


def total(output: Output) -> jax.Array:
    """A number that all outputs move."""
    assert output.word_BLV is not None
    logits = jax.nn.log_softmax(output.match_M2)[:, 1] * (1 + jnp.arange(output.match_M2.shape[0]) % 5)
    words = jnp.where((output.word_target_BL >= 0)[..., None], jax.nn.log_softmax(output.word_BLV), 0.0)
    return logits.mean() + jnp.sin(words).mean() + output.scale * (output.video_BE * output.text_BE).sum(axis=1).mean()


@functools.cache
def step(chunk: int = 0) -> Any:
    """The jitted function (params, batch) -> ((a loss, outputs), gradients) in training."""

    def loss(p: Any, batch: Any) -> tuple[jax.Array, Output]:
        model = make(matching={"chunk": chunk})
        output = model.apply(p, batch["video"], batch["text"], train=True, dials=ALL, rngs=RNGS)
        return total(output), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def alone() -> Any:
    return jax.device_get(step()(params(), {"video": VIDEO, "text": TEXT}))


@functools.cache
def margins() -> np.ndarray:
    """How well `match` finds every clip and every text to go together, [clip, text]."""
    apply, video, text = make().apply, *(places.reshape(-1) for places in np.indices((BATCH, BATCH)))

    @jax.jit
    def run(p: Any) -> jax.Array:
        tokens_BND = apply(p, VIDEO, method="video_tokens", train=True, dials=ALL, rngs=RNGS)
        assert tokens_BND.shape == (BATCH, 1 + 5, 8) and tokens_BND.dtype == jnp.float32
        return apply(p, tokens_BND[video], jnp.asarray(TEXT)[text], method="match", dials=ALL)

    return np.asarray(run(params())).reshape(BATCH, BATCH)


def close(one: Any, other: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_pairs_are_the_true_ones_and_wrong_ones_that_may_be_drawn() -> None:
    (_, output), _ = alone()
    assert output.match_M2.shape == (3 * BATCH, 2) and output.match_M2.dtype == np.float32
    np.testing.assert_array_equal(output.match_target_M, [1] * BATCH + [0] * 2 * BATCH)
    found = (output.match_M2[:, 1] - output.match_M2[:, 0]).reshape(3, BATCH)
    np.testing.assert_allclose(found[0], np.diag(margins()), rtol=1e-4, atol=1e-4)
    for row in range(BATCH):
        own = NO_NEGATIVE.get(row, {row})
        for side, values in enumerate((margins()[row], margins()[:, row])):
            like = {i for i in range(BATCH) if abs(values[i] - found[1 + side, row]) < 1e-4}
            assert like, f"the pair of row {row} is none of its {('texts', 'clips')[side]}"
            assert like - own, f"row {row} got itself, or one that says or shows the same"


@pytest.mark.slow
def test_evaluating_draws_nothing_prunes_by_text_and_sees_no_padding() -> None:
    apply, texts = make().apply, (TEXT, np.pad(TEXT, ((0, 0), (0, 3))))
    dials = Dials(keep_text=((0, 0.4),))

    @jax.jit
    def run(p: Any) -> Any:
        tokens_BND = apply(p, VIDEO, method="video_tokens")
        match = [apply(p, tokens_BND, TEXT, method="match", dials=how) for how in (dials, OFF)]
        return *match, *(apply(p, VIDEO, text, train=False, dials=dials) for text in texts)

    margin_B, off_B, output, longer = run(params())
    np.testing.assert_allclose(output.match_M2[:, 1] - output.match_M2[:, 0], margin_B, rtol=1e-4, atol=1e-4)
    assert np.abs(margin_B - off_B).max() > 1e-2, "the text prunes nothing"
    assert (output.match_target_M == 1).all() and output.word_BLV is None
    close(output, longer)  # padding changes nothing


@pytest.mark.slow
def test_parts_of_a_batch_make_the_whole() -> None:
    """Masks, dropped tokens and masked words of a row do not depend on the rows it is encoded with."""
    model = make()

    @jax.jit
    def part(p: Any, video: jax.Array, text: jax.Array, rows_B: jax.Array) -> Any:
        dials = Dials(**{**vars(ALL), "rows_B": rows_B})
        return model.apply(p, video, text, train=True, dials=dials, rngs=RNGS, method="encode")

    half = BATCH // 2
    parts = [part(params(), VIDEO[i : i + half], TEXT[i : i + half], jnp.arange(i, i + half)) for i in (0, half)]
    encoded = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert all(leaf.shape[0] == BATCH for leaf in jax.tree.leaves(encoded))
    head = functools.partial(model.apply, train=True, dials=ALL, rngs=RNGS, method="head")
    (_, output), _ = alone()
    close(jax.jit(head)(params(), encoded), output, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_some_pairs_at_a_time_are_all_at_once() -> None:
    """The four pairs of three rows of eight, which does not divide."""
    close(step(chunk=12)(params(), {"video": VIDEO, "text": TEXT}), alone())


@pytest.mark.slow
def test_eight_devices_compute_what_one_does() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with use_mesh(mesh):
        placed = jax.device_put(params(), tree_shardings(boxed(), mesh))
        found = jax.device_get(step(chunk=4)(placed, put_batch({"video": VIDEO, "text": TEXT}, mesh)))
    close(found, alone(), rtol=2e-3, atol=2e-4)


def test_every_parameter_learns() -> None:
    for name, leaf in tree.flatten_paths(alone()[1]).items():
        assert np.isfinite(leaf).all()
        if "/key/bias" not in name:  # adds the same to all logits of a softmax
            assert np.abs(leaf).max() > 1e-7, f"{name} gets no gradient"


def test_words_are_told_by_the_rows_of_the_word_table() -> None:
    """Moving the row of a word that no text has moves its own logits, and no other."""
    (_, before), _ = alone()
    table = params()["params"]["text_encoder"]["words"]["table"].copy()
    table[1] += 0.5
    encoder = params()["params"]["text_encoder"] | {"words": {"table": table}}
    moved = {"params": params()["params"] | {"text_encoder": encoder}}
    (_, after), _ = step()(moved, {"video": VIDEO, "text": TEXT})
    apart = np.abs(after.word_BLV - before.word_BLV).max(axis=(0, 1)) > 1e-3
    # One word in ten is exchanged for any other; here none became word 1.
    np.testing.assert_array_equal(np.flatnonzero(apart), [1])
    asked = before.word_target_BL >= 0
    np.testing.assert_array_equal(before.word_target_BL[asked], TEXT[asked])
    assert 5 < asked.sum() < 30


def test_a_dual_encoders_parameters_fit() -> None:
    base = dual_encoder.Model(**BASE)
    shapes = nn.unbox(jax.eval_shape(functools.partial(base.init, train=False), jax.random.key(0), VIDEO, TEXT))
    dual = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes["params"])
    merged, report = tree.merge(params()["params"], dual)
    report.raise_unless(["^fusion_encoder/", "^match_head/", "^word_head/"])
    assert not report.unused and set(report.loaded) == set(tree.flatten_paths(dual))
    embed = jax.jit(functools.partial(make().apply, method="embed_video"))({"params": merged}, VIDEO)
    close(embed, jax.jit(functools.partial(base.apply, method="embed_video"))({"params": dual}, VIDEO))


@pytest.mark.slow
def test_a_model_cut_out_at_widths_is_the_one_at_that_dial() -> None:
    small, cut = slice_params(make(), params()["params"], (16, 8), VIDEO, TEXT)
    assert cut["fusion_encoder"]["layers"]["cross_attention"]["key"]["kernel"].shape[1] == 16
    one = jax.jit(functools.partial(small.apply, train=False))({"params": cut}, VIDEO, TEXT)
    two = jax.jit(functools.partial(make().apply, train=False, dials=Dials(widths=(16, 8))))(params(), VIDEO, TEXT)
    close(one, two)


@pytest.mark.slow
def test_a_next_word_is_guessed_from_the_clip_and_the_words_before_it() -> None:
    causal = {"text": {**BASE["text"], "transformer": {**BASE["text"]["transformer"], "causal": True}, "pool": "eos"}}
    model = Model(**BASE | causal, fusion={"layers": 1, "causal": True}, captions=True)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), VIDEO, TEXT)

    @jax.jit
    def logits(video: Any, text: Any) -> jax.Array:
        output: Any = model.apply(variables, video, text, train=True, rngs=RNGS)
        return output.caption_BLV

    changed = TEXT.copy()
    changed[:, 3:] = 7
    before, after, other_clip = logits(VIDEO, TEXT), logits(VIDEO, changed), logits(VIDEO[::-1], TEXT)
    assert before.shape == (*TEXT.shape, 20)
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert (jnp.abs(after[:, 3:] - before[:, 3:]).max(axis=(1, 2)) > 1e-3).all()
    assert (jnp.abs(other_clip - before).max(axis=(1, 2))[:3] > 1e-4).all()
    with pytest.raises(ValueError, match="set causal=True in model.text.transformer and in model.fusion"):
        jax.eval_shape(functools.partial(make(captions=True).init, train=False), jax.random.key(0), VIDEO, TEXT)


def test_tokens_that_a_text_keeps_are_told() -> None:
    model, tokens_BND = make(), jnp.asarray(RNG.normal(size=(BATCH, 9, 16)), jnp.float32)

    def kept(dials: Dials) -> Any:
        return jax.jit(functools.partial(model.apply, method="kept", dials=dials))(params(), tokens_BND, TEXT)

    kept_BM = np.asarray(kept(Dials(keep_text=((0, 0.5), (1, 0.5)))))
    assert kept_BM.shape == (BATCH, 2) and (np.diff(kept_BM) > 0).all() and kept_BM.max() < 8
    assert len({tuple(row) for row in kept_BM}) > 1
    with pytest.raises(ValueError, match="leaves all tokens"):
        kept(OFF)


@pytest.mark.parametrize(
    ("tower", "tokens", "cls"),
    [
        ({"pool": "mean"}, 8, 0),
        ({"pool": "mean", "cls": True}, 8, 1),
        ({"tubelet": (1, 8, 8), "transformer": TRANSFORMER | {"width": 16, "layout": "frames"}}, 16, 0),
    ],
    ids=["no cls", "cls beside the mean", "a cls in each frame"],
)
def test_texts_read_cls_where_the_clip_has_one(tower: dict[str, Any], tokens: int, cls: int) -> None:
    model = Model(**BASE | FUSION | {"video": BASE["video"] | tower})
    p = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO, TEXT)
    given = jax.eval_shape(functools.partial(model.apply, method="video_tokens"), p, VIDEO)
    assert given.shape == (BATCH, tokens + cls, 16)
    # Half of the tokens without cls are what a text keeps.
    dials = Dials(keep_text=((0, 0.5),))
    kept = jax.eval_shape(functools.partial(model.apply, method="kept", dials=dials), p, given, TEXT)
    assert kept.shape == (BATCH, tokens // 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fusion": {"layer": 2}}, "model.fusion has an unknown key 'layer'"),
        ({"words": {"rate": 0.5}}, "as mask_id the id that the tokenizer gives"),
        ({"words": {"rate": 1.5, "mask_id": 4}}, "rate=1.5"),
        ({"words": {"rate": 0.5, "mask_id": 20}}, "mask_id is 20; the ids of this vocabulary are 0 to 19"),
        ({"matching": {"chunk": -1}}, "model.matching.chunk is -1"),
        ({"rngs": {"negatives"}}, "model.words masks words, which are drawn"),
        ({"rngs": {"words"}}, "matching draws wrong pairs"),
        ({"rows": 1}, "a batch of 1 has no other row"),
        ({"texts": 3}, "2 clips and 3 texts"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    changes = dict(changes)
    given, rows = changes.pop("rngs", set(RNGS)), changes.pop("rows", 2)
    texts = changes.pop("texts", rows)

    def run() -> Any:
        rngs = {"params": jax.random.key(0)} | {name: RNGS[name] for name in given}
        return make(**changes).init(rngs, VIDEO[:rows], TEXT[:texts], train=True)

    with pytest.raises(ValueError, match=words):
        jax.eval_shape(run)
