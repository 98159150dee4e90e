"""Search and sampling against plain Python, over a language model that is a table of chances."""

import itertools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.nn.generation import Decoding, generate
from vidlang.ops.decoding import NEVER, Beams, extend, nucleus

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
# Every way a text can begin.
ALL_PROMPTS = np.array(list(itertools.product(range(3), range(VOCAB), range(VOCAB))), np.int32)


def run(how, prompts=PROMPTS, lengths=LENGTHS, **options):
    settings = Decoding(how, **{"stop_ids": (END,), **options})
    rows = options.pop("rows", None)
    return jax.jit(lambda p, n: generate(start, advance, p, n, settings, rows))(prompts, lengths)


LOG_P = TABLE - np.log(np.exp(TABLE.astype(np.float64)).sum(axis=-1, keepdims=True))


def log_p(row, tokens):
    """Of each token of a text after a row's prompt, or after a prompt."""
    text = list(PROMPTS[row, : LENGTHS[row]]) if isinstance(row, int) else list(row)
    table, found = text[0] % 3, []
    for token in tokens:
        found.append(LOG_P[table, text[-2] if len(text) > 1 else text[-1], text[-1], token])
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


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.6, 1.5])
def test_with_beams_enough_the_best_text_of_all_is_found(power):
    made = run("beam", max_new=4, beams=300, samples=3, length_penalty=power)
    for row in range(4):
        scored = sorted(((sum(log_p(row, t)) / norm(len(t), power), t) for t in every_text(4)), reverse=True)
        for place in range(3):
            score, text = scored[place]
            assert made.tokens_BSN[row, place, : len(text)].tolist() == list(text)
            np.testing.assert_allclose(made.score_BS[row, place], score, rtol=1e-5)


def plain_beams(row, beams, longest, power, fewest=0, stop=(END,)):
    """The usual search, by lists, to the last token; best first."""
    live, ended = [(0.0, ())], []
    for length in range(1, longest + 1):
        longer = sorted(
            (
                (sum(log_p(row, (*text, t))), (*text, t))
                for _, text in live
                for t in range(VOCAB)
                if t not in stop or length >= fewest
            ),
            reverse=True,
        )
        ended += [(score / norm(len(text), power), text) for score, text in longer[:beams] if text[-1] in stop]
        live = [(score, text) for score, text in longer if text[-1] not in stop][:beams]
    return sorted(ended + [(score / norm(longest, power), text) for score, text in live], reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beams", "options"),
    [
        (2, {}),
        (3, {}),
        (2, {"min_new": 3}),
        (3, {"stop_ids": (END, 1, 2)}),
        (3, {"stop_ids": ()}),
        (2, {"length_penalty": 2.0}),
        (2, {"stop_ids": (END, 1, 2, 3), "length_penalty": 3.0}),
        (4, {"length_penalty": -3.0}),
    ],
)
def test_few_beams_find_what_plain_beams_find(beams, options):
    """Whether one text of each row is wanted, which ends the search as soon as none can be better, or several."""
    power, stop = options.get("length_penalty", 0.6), options.get("stop_ids", (END,))
    plain = [plain_beams(prompt, beams, 5, power, options.get("min_new", 0), stop) for prompt in ALL_PROMPTS]
    for samples in (1, 2):
        made = run("beam", ALL_PROMPTS, np.full(75, 3), max_new=5, beams=beams, samples=samples, **options)
        tokens, lengths, scores = map(np.asarray, (made.tokens_BSN, made.length_BS, made.score_BS))
        for row, found in enumerate(plain):
            for place, (score, text) in enumerate(found[:samples]):
                assert tokens[row, place].tolist() == [*text, *[0] * (5 - len(text))]
                assert lengths[row, place] == len(text)
                np.testing.assert_allclose(scores[row, place], score, rtol=1e-5)


def test_as_many_go_on_however_many_end():
    log_p = jnp.log(jnp.array([[[0.1, 0.2, 0.3, 0.25, 0.15]] * 2]))
    beams = Beams.begin(1, 2, 3).replace(log_p_BK=jnp.array([[-1.0, -2.0]]))
    beams, parent, token = extend(beams, log_p, jnp.int32(1), (1, 2, 3, 4), 1.0)
    np.testing.assert_allclose(beams.log_p_BK, [[-1 + math.log(0.1), -2 + math.log(0.1)]], rtol=1e-6)
    assert parent.tolist() == [[0, 1]] and token.tolist() == [[0, 0]]
    assert beams.ended_BKN.tolist() == [[[0, 2, 0], [0, 3, 0]]]
    np.testing.assert_allclose(beams.score_BK, [[(-1 + math.log(p)) / (7 / 6) for p in (0.3, 0.25)]], rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.6])
def test_one_beam_is_greedy(power):
    beam, greedy = run("beam", beams=1, max_new=6, length_penalty=power), run("greedy", max_new=6)
    np.testing.assert_array_equal(beam.tokens_BSN, greedy.tokens_BSN)
    np.testing.assert_allclose(beam.score_BS, greedy.score_BS / norm(greedy.length_BS, power), rtol=1e-6)


@pytest.mark.parametrize("how", ["greedy", "beam", "nucleus"])
def test_no_text_ends_too_early_and_its_score_is_the_models_all_the_same(how):
    options = {"max_new": 8, "min_new": 5, "temperature": 1e30 if how == "nucleus" else 1.0, "top_p": 1.0}
    made = run(how, ALL_PROMPTS, np.full(75, 3), **options)
    tokens, lengths, scores = (np.asarray(x)[:, 0] for x in (made.tokens_BSN, made.length_BS, made.score_BS))
    assert (lengths >= 5).all() and (lengths == 5).any() and (lengths < 8).any()
    for prompt, text, length, score in zip(ALL_PROMPTS, tokens.tolist(), lengths, scores, strict=True):
        expected = sum(log_p(prompt, text[:length])) / (norm(length, 0.6) if how == "beam" else 1.0)
        np.testing.assert_allclose(score, expected, rtol=1e-5)


@pytest.mark.parametrize("how", ["greedy", "beam", "nucleus"])
def test_a_text_ends_with_the_first_token_that_ends_one_and_zeros_follow(how):
    made = run(how, max_new=8, stop_ids=(END, 2), samples=2 if how != "greedy" else 1)
    ended = 0
    for text, length in zip(made.tokens_BSN.reshape(-1, 8).tolist(), made.length_BS.reshape(-1).tolist(), strict=True):
        ends = [place for place, token in enumerate(text) if token in (END, 2)]
        assert length == (ends[0] + 1 if ends else 8) and not any(text[length:])
        ended += bool(ends)
    assert ended > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "options"),
    [("greedy", {}), ("nucleus", {"samples": 2}), ("beam", {"samples": 2}), ("beam", {"length_penalty": -3.0})],
)
def test_a_row_is_searched_as_if_it_were_alone(how, options):
    """Rows of one batch end at different steps; alone, a search ends with its only row."""
    settings = Decoding(how, max_new=9, beams=3, stop_ids=(END,), **options)
    search = jax.jit(lambda p, rows: generate(start, advance, p, jnp.full(len(p), 3), settings, rows))
    rows = np.random.default_rng(0).permutation(75)
    whole = jax.device_get(search(ALL_PROMPTS, rows))
    assert len(set(whole.length_BS[:, 0].tolist())) > 3
    for row in range(75):
        alone = jax.device_get(search(ALL_PROMPTS[row : row + 1], rows[row : row + 1]))
        np.testing.assert_array_equal(whole.tokens_BSN[row], alone.tokens_BSN[0])
        np.testing.assert_allclose(whole.score_BS[row], alone.score_BS[0], rtol=1e-6)


@pytest.mark.parametrize("how", ["greedy", "beam", "nucleus"])
def test_one_loop_ends_when_all_rows_have_ended(how):
    asked = []

    def counted(token_B, state):
        jax.debug.callback(lambda: asked.append(1))
        return advance(token_B, state)

    def search(settings):
        return jax.jit(lambda p, n: generate(start, counted, p, n, settings))

    settings = Decoding(how, max_new=300, beams=2, stop_ids=(END,))
    # The other two would go on for ever.
    ending = PROMPTS[:2], LENGTHS[:2]
    assert str(jax.make_jaxpr(search(settings))(*ending)).count(" while[") == 1
    longest = int(search(settings)(*ending).length_BS.max())
    jax.effects_barrier()
    assert len(asked) < 60 and (how == "beam" or len(asked) == longest)


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


@pytest.mark.slow
def test_a_draw_depends_on_the_row_and_the_seed_alone():
    rows = np.array([7, 3, 9, 4], np.int32)
    settings = Decoding("nucleus", max_new=6, samples=2, stop_ids=(END,))
    whole = generate(start, advance, PROMPTS, LENGTHS, settings, rows)
    alone = generate(start, advance, PROMPTS[2:3], LENGTHS[2:3], settings, rows[2:3])
    np.testing.assert_array_equal(whole.tokens_BSN[2], alone.tokens_BSN[0])
    assert (whole.tokens_BSN[:, 0] != whole.tokens_BSN[:, 1]).any()
    other = generate(start, advance, PROMPTS, LENGTHS, Decoding("nucleus", max_new=6, samples=2, seed=1), rows)
    assert (other.tokens_BSN != whole.tokens_BSN).any()


@pytest.mark.slow
def test_each_token_is_drawn_anew():
    def flat(token_B, state):
        return jnp.zeros((1, VOCAB)), state

    made = generate(lambda p, n: flat(n, ()), flat, PROMPTS[:1], LENGTHS[:1], Decoding("nucleus", max_new=500))
    np.testing.assert_allclose(np.bincount(made.tokens_BSN[0, 0], minlength=VOCAB) / 500, 1 / VOCAB, atol=0.08)


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1e-38])
def test_without_temperature_drawing_is_greedy(temperature):
    drawn, greedy = run("nucleus", max_new=6, temperature=temperature, min_new=2), run("greedy", max_new=6, min_new=2)
    np.testing.assert_array_equal(drawn.tokens_BSN, greedy.tokens_BSN)
    np.testing.assert_allclose(drawn.score_BS, greedy.score_BS, rtol=1e-6)


@pytest.mark.slow
def test_the_nucleus_has_the_token_that_crosses_its_share():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.3, 0.1]]))
    kept = np.asarray(nucleus(logits, 0.6)) > NEVER
    assert kept.tolist() == [[False, True, True, False]]
    assert (np.asarray(nucleus(logits, 0.01)) > NEVER).sum() == 1
    assert (np.asarray(nucleus(logits, 1.0)) > NEVER).all()
    assert (np.asarray(nucleus(jnp.zeros((1, 4)), 0.3)) > NEVER).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0, 300.0])
def test_the_nucleus_is_what_sorting_finds(scale):
    logits = np.random.default_rng(0).normal(size=(30, 400)).astype(np.float32) * scale
    for share in (0.05, 0.5, 0.9, 0.999):
        kept = np.asarray(nucleus(jnp.asarray(logits), share)) > NEVER
        for row, inside in zip(logits.astype(np.float64), kept, strict=True):
            chance = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            order = np.argsort(-chance)
            before = np.cumsum(chance[order]) - chance[order]
            # What lies on the edge may fall on either side of it.
            sure, may = before < share - 1e-5, before < share + 1e-5
            assert inside[order[sure]].all() and not inside[order[~may]].any() and inside[order[0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"how": "beams"}, "decoding.how is 'beams'; it is one of greedy, beam, nucleus"),
        ({"max_new": 0}, "decoding.max_new is 0; it must be a whole number from 1 on"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "decoding.top_p is 0.0"),
        ({"length_penalty": math.inf}, "decoding.length_penalty is inf"),
        ({"stop_ids": (3, -1)}, "decoding.stop_ids has -1"),
        ({"how": "beam", "beams": 2, "samples": 3}, "beam search gives 2 text.s. a row; set beams as high"),
        ({"min_new": 33}, "decoding.min_new is 33 and max_new 32"),
    ],
)
def test_settings_that_cannot_be_are_said(options, words):
    with pytest.raises(ValueError, match=words):
        Decoding(**options)
