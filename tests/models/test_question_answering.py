"""Question answering: one logit for each answer, from what the question reads in the clip."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core import tree
from vidlang.models import fusion
from vidlang.models.question_answering import Model
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import Dials, streams

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 32, "dtype": "float32", "scan": False}
TOWERS: dict[str, Any] = {
    "video": {"transformer": TRANSFORMER | {"width": 16}, "tubelet": (2, 8, 8), "pool": "cls"},
    "text": {"vocab": 20, "max_length": 10, "transformer": TRANSFORMER | {"layers": 1}, "pool": "cls"},
    "fusion": {"layers": 2},
}
MODEL = Model(**TOWERS, answers=7)
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (4, 4, 16, 16, 3)).astype(np.uint8)
TEXT = RNG.integers(5, 20, (4, 6)).astype(np.int32)
DIALS = Dials(mask=0.25, widths=(16, 8), keep={0: 0.7}, keep_text=((0, 0.5),))


@functools.cache
def params() -> Any:
    shapes = jax.eval_shape(functools.partial(MODEL.init, train=False), jax.random.key(0), VIDEO, TEXT)
    return jax.tree.map(lambda leaf: (0.3 * RNG.normal(size=leaf.shape)).astype(np.float32), nn.unbox(shapes))


@functools.cache
def logits() -> np.ndarray:
    return np.asarray(jax.jit(functools.partial(MODEL.apply, method="answer"))(params(), VIDEO, TEXT))


@pytest.mark.slow
def test_every_question_gets_a_logit_for_each_answer() -> None:
    output = jax.jit(functools.partial(MODEL.apply, train=False))(params(), VIDEO, TEXT)
    assert set(output.logits) == {"answer"} and MODEL.heads == {"answer": 7}
    np.testing.assert_allclose(output.logits["answer"], logits(), rtol=1e-5, atol=1e-6)
    assert logits().shape == (4, 7) and logits().dtype == np.float32


@pytest.mark.slow
def test_clip_and_question_both_matter_and_padding_does_not() -> None:
    answer = jax.jit(functools.partial(MODEL.apply, method="answer"))
    for other in ((VIDEO[::-1], TEXT), (VIDEO, TEXT[::-1])):
        assert np.abs(answer(params(), *other) - logits()).max() > 1e-2
    longer = np.pad(TEXT, ((0, 0), (0, 3)))
    np.testing.assert_allclose(answer(params(), VIDEO, longer), logits(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_parts_of_a_batch_make_the_whole_under_all_dials() -> None:
    rngs = streams(jax.random.key(1))

    @jax.jit
    def run(p: Any) -> Any:
        apply = functools.partial(MODEL.apply, p, train=True, rngs=rngs)
        parts = []
        for i in (0, 2):
            dials = Dials(**{**vars(DIALS), "rows_B": jnp.arange(i, i + 2)})
            parts.append(apply(VIDEO[i : i + 2], TEXT[i : i + 2], dials=dials, method="encode"))
        encoded = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return apply(VIDEO, TEXT, dials=DIALS), apply(encoded, dials=DIALS, method="head")

    whole, found = run(params())
    np.testing.assert_allclose(found.logits["answer"], whole.logits["answer"], rtol=1e-5, atol=1e-5)


def test_a_pre_trained_fusion_model_fits_but_for_the_choice() -> None:
    config = TOWERS | {"embed": 8, "temperature": {"init": 0.5, "max_scale": 100.0, "learnable": True}}
    trained = fusion.Model(**config, words={"rate": 0.5, "mask_id": 4})
    shapes = nn.unbox(jax.eval_shape(functools.partial(trained.init, train=False), jax.random.key(0), VIDEO, TEXT))
    _, report = tree.merge(params()["params"], jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes["params"]))
    report.raise_unless(["^answer_", "_projection/", "^log_scale", "^match_head/", "^word_head/"])
    assert not report.mismatched and all(name.startswith("answer_") for name in report.missing)


def test_a_model_cut_out_at_widths_is_the_one_at_that_dial() -> None:
    small, cut = slice_params(MODEL, params()["params"], (16, 8), VIDEO, TEXT)
    one = jax.jit(functools.partial(small.apply, method="answer"))({"params": cut}, VIDEO, TEXT)
    two = jax.jit(functools.partial(MODEL.apply, method="answer", dials=Dials(widths=(16, 8))))(params(), VIDEO, TEXT)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_choice_among_no_answers_is_refused() -> None:
    model = Model(**TOWERS, answers=0)
    with pytest.raises(ValueError, match="answers is 0"):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), VIDEO, TEXT)
