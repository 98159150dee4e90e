"""Search and sampling against plain Python, over a language model that is a table of chances."""

import itertools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.nn.generation import Decoding, generate
from vidlang.ops.decoding import NEVER, nucleus

VOCAB, END = 5, 4
# What follows a token depends on it and on the one before: the state is the token before.
TABLE = np.random.default_rng(0).normal(size=(3, VOCAB, VOCAB, VOCAB)).astype(np.float32) * 1.5


@flax.struct.dataclass
class State:
    """Which table a row uses, and its last token."""

    table_R: jax.Array
    last_R: jax.Array

    def rows(self, parent_R, *, same_video=False):
        return State(self.table_R[parent_R], self.last_R[parent_R])


def start(prompt_BL, length_B):
    rows = jnp.arange(prompt_BL.shape[0])
    last = prompt_BL[rows, length_B - 1]
    before = prompt_BL[rows, jnp.maximum(length_B - 2, 0)]
    table = prompt_BL[:, 0] % 3
    return jnp.asarray(TABLE)[table, before, last], State(table, last)


def advance(token_B, state):
    return jnp.asarray(TABLE)[state.table_R, state.last_R, token_B], State(state.table_R, token_B)


PROMPTS = np.array([[0, 1, 2], [1, 3, 0], [2, 0, 0], [2, 2, 0]], np.int32)
LENGTHS = np.array([3, 2, 1, 2], np.int32)


def run(how, prompts=PROMPTS, lengths=LENGTHS, **options):
    settings = Decoding(how, **{"stop_ids": (END,), **options})
    rows = options.pop("rows", None)
    return jax.jit(lambda p, n: generate(start, advance, p, n, settings, rows))(prompts, lengths)


def log_p(row, tokens):
    """Of each token of a text after a row's prompt."""
    text = list(PROMPTS[row, : LENGTHS[row]])
    found = []
    for token in tokens:
        logits = TABLE[PROMPTS[row, 0] % 3, text[-2] if len(text) > 1 else text[-1], text[-1]].astype(np.float64)
        found.append(logits[token] - np.log(np.exp(logits).sum()))
        text.append(token)
    return found


def norm(length, power):
    return ((5 + length) / 6) ** power


def every_text(longest):
    """All that end by END, or at the longest."""
    for length in range(1, longest + 1):
        for text in itertools.product(range(VOCAB), repeat=length):
            if END not in text[:-1] and (text[-1] == END or length == longest):
                yield text


def test_greedy_takes_the_most_likely_each_time():
    made = run("greedy", max_new=6)
    for row in range(4):
        text = []
        while len(text) < 6 and END not in text:
            text.append(int(np.argmax([log_p(row, [*text, t])[-1] for t in range(VOCAB)])))
        assert made.tokens_BSN[row, 0].tolist() == text + [0] * (6 - len(text))
        assert made.length_BS[row, 0] == len(text)
        np.testing.assert_allclose(made.score_BS[row, 0], sum(log_p(row, text)), rtol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.6, 1.5])
def test_with_beams_enough_the_best_text_of_all_is_found(power):
    made = run("beam", max_new=4, beams=300, samples=3, length_penalty=power)
    for row in range(4):
        scored = sorted(((sum(log_p(row, t)) / norm(len(t), power), t) for t in every_text(4)), reverse=True)
        for place in range(3):
            score, text = scored[place]
            assert made.tokens_BSN[row, place, : len(text)].tolist() == list(text)
            np.testing.assert_allclose(made.score_BS[row, place], score, rtol=1e-5)


def plain_beams(row, beams, longest, power):
    """The usual search, by lists."""
    live, ended = [(0.0, ())], []
    for _ in range(longest):
        longer = sorted(
            ((sum(log_p(row, (*text, t))), (*text, t)) for _, text in live for t in range(VOCAB)), reverse=True
        )[: 2 * beams]
        ended += [(score / norm(len(text), power), text) for score, text in longer[:beams] if text[-1] == END]
        live = [(score, text) for score, text in longer if text[-1] != END][:beams]
    return max(ended + [(score / norm(longest, power), text) for score, text in live])


@pytest.mark.parametrize("beams", [2, 3])
def test_few_beams_find_what_plain_beams_find(beams):
    made = run("beam", max_new=5, beams=beams, length_penalty=0.6)
    for row in range(4):
        score, text = plain_beams(row, beams, 5, 0.6)
        assert made.tokens_BSN[row, 0, : len(text)].tolist() == list(text)
        np.testing.assert_allclose(made.score_BS[row, 0], score, rtol=1e-5)


def test_one_beam_without_norm_is_greedy():
    for length_penalty in (0.0, 0.6):
        beam, greedy = run("beam", beams=1, max_new=6, length_penalty=length_penalty), run("greedy", max_new=6)
        np.testing.assert_array_equal(beam.tokens_BSN, greedy.tokens_BSN)


def test_no_text_ends_too_early():
    for how in ("greedy", "beam", "nucleus"):
        made = run(how, max_new=8, min_new=5)
        assert (np.asarray(made.length_BS) >= 5).all()


def test_what_is_drawn_is_as_likely_as_it_should_be():
    """The first token of many rows that are alike, and only those in the nucleus."""
    prompts, lengths = np.tile(PROMPTS[:1], (4000, 1)), np.full(4000, 3)
    made = run("nucleus", prompts, lengths, max_new=1, top_p=0.8, temperature=0.7)
    chance = np.exp(np.array([log_p(0, [t])[0] for t in range(VOCAB)]) / 0.7)
    chance /= chance.sum()
    inside, total = np.zeros(VOCAB, bool), 0.0
    for token in np.argsort(-chance):
        if total < 0.8:
            inside[token], total = True, total + chance[token]
    expected = np.where(inside, chance, 0) / chance[inside].sum()
    found = np.bincount(np.asarray(made.tokens_BSN)[:, 0, 0], minlength=VOCAB) / 4000
    assert not found[~inside].any()
    np.testing.assert_allclose(found, expected, atol=4 * math.sqrt(0.25 / 4000))


def test_a_draw_depends_on_the_row_and_the_seed_alone():
    rows = np.array([7, 3, 9, 4], np.int32)
    settings = Decoding("nucleus", max_new=6, samples=2, stop_ids=(END,))
    whole = generate(start, advance, PROMPTS, LENGTHS, settings, rows)
    alone = generate(start, advance, PROMPTS[2:3], LENGTHS[2:3], settings, rows[2:3])
    np.testing.assert_array_equal(whole.tokens_BSN[2], alone.tokens_BSN[0])
    assert (whole.tokens_BSN[:, 0] != whole.tokens_BSN[:, 1]).any()
    other = generate(start, advance, PROMPTS, LENGTHS, Decoding("nucleus", max_new=6, samples=2, seed=1), rows)
    assert (other.tokens_BSN != whole.tokens_BSN).any()


def test_without_temperature_drawing_is_greedy():
    drawn, greedy = run("nucleus", max_new=6, temperature=0.0), run("greedy", max_new=6)
    np.testing.assert_array_equal(drawn.tokens_BSN, greedy.tokens_BSN)


def test_the_nucleus_has_the_token_that_crosses_its_share():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.3, 0.1]]))
    kept = np.asarray(nucleus(logits, 0.6)) > NEVER
    assert kept.tolist() == [[False, True, True, False]]
    assert (np.asarray(nucleus(logits, 0.01)) > NEVER).sum() == 1
    assert (np.asarray(nucleus(logits, 1.0)) > NEVER).all()
