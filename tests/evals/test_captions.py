"""Caption metrics against stored scores of the reference tools, and cases worked by hand."""

import json
import math
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vidlang.datasets.synthetic import parse_events, sentences
from vidlang.datasets.synthetic.grammar import COLOURS, PATTERNS, SHAPES, VERBS, Background, Event, Scene, Video
from vidlang.evals.captioning import in_order
from vidlang.evals.metrics import caption_scores, captions, ptb

GOLDEN = json.loads((Path(__file__).parent / "golden_captions.json").read_text())
SPLIT = lambda texts: [text.split() for text in texts]  # noqa: E731
WORDS, REFERENCES = SPLIT(GOLDEN["captions"]), [SPLIT(refs) for refs in GOLDEN["references"]]


def test_words_are_those_of_the_reference():
    wrong = {text: found for text, told in GOLDEN["words"] if (found := ptb.words(text)) != told.split()}
    assert not wrong


def test_scores_are_those_of_the_reference():
    whole = {name: GOLDEN[name] for name in ("captions", "references", "bleu", "rouge_l", "cider_d")}
    for told in (whole, *GOLDEN["corpora"]):  # the latter are of one caption to ten, some of them empty
        said, references = SPLIT(told["captions"]), [SPLIT(refs) for refs in told["references"]]
        np.testing.assert_allclose(captions.bleu(said, references), told["bleu"], atol=1e-9)
        np.testing.assert_allclose(captions.rouge_l(said, references), told["rouge_l"], atol=1e-9)
        np.testing.assert_allclose(captions.cider(said, references), told["cider_d"], atol=1e-9)


def test_words_by_hand():
    assert (
        ptb.words("A man's dog can't run, it's (very) old!")
        == "a man 's dog ca n't run it 's -lrb- very -rrb- old".split()
    )
    assert ptb.words("caf\u00e9 \u2014 \u201cna\u00efve\u201d \U0001f600") == ["caf\u00e9", "na\u00efve"]
    assert ptb.words("  ") == [] and ptb.words("...") == []


def test_words_that_were_split_before_stay_what_they_are():
    # Published captions are often split already: "a man 's hand" is what "a man's hand" gives.
    for text in ("a man's dog doesn't run", "they're here, aren't they?", "I can't; you'll say 'no'"):
        assert ptb.words(" ".join(ptb.words(text))) == ptb.words(text)


def test_captions_of_words_alone_take_a_short_cut_to_the_same():
    rng = random.Random(0)
    vocabulary = ["a", "A", "Man", "cannot", "GONNA", "x", "dog", "lemme", "st", "U", "no"]
    for _ in range(100):
        text = " ".join(rng.choices(vocabulary, k=rng.randint(0, 8)))
        assert ptb.words(text) == ptb.words(f"{text} ,")


def test_long_texts_of_any_kind_take_a_moment():
    rng = random.Random(0)
    for part in ("a", "a.", "a-", "a/", "+-", "<a ", "'n", "1,", "@", "www.", "\u00e9", "(", "a@", "n't"):
        began = time.perf_counter()
        ptb.words(part * 3000 + rng.choice(".,"))
        assert time.perf_counter() - began < 2


def test_rouge_by_hand():
    # Longest common run of words in order: a b d, 3 of 4 and 3 of 5.
    (found,) = captions.rouge_l([list("abxd")], [[list("abcde")]])
    assert found == pytest.approx((1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75))
    # Precision and recall may come from different references.
    (found,) = captions.rouge_l([["a", "b"]], [[["a"], ["a", "b", "c", "d"]]])
    assert found == pytest.approx((1 + 1.44) * 1.0 * 1.0 / (1.0 + 1.44))
    assert captions.rouge_l([[], ["x"]], [[["a"]], [["a"]]]).tolist() == [0, 0]


def test_the_longest_common_run_is_that_of_the_usual_table():
    rng = random.Random(0)
    for _ in range(200):
        one, other = ([rng.choice("abc") for _ in range(rng.randint(0, 9))] for _ in range(2))
        table = np.zeros((len(one) + 1, len(other) + 1), int)
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
        assert captions.longest_common(one, other) == table[-1, -1]


def test_bleu_by_hand():
    # "the the the" has the once of at most two that the references have: 2 of 3, and no pair of them.
    found = captions.bleu([["the", "the", "the"]], [[["the", "cat", "the"]]])
    assert found[0] == pytest.approx(2 / 3, abs=1e-6) and found[1] < 1e-6
    # Lengths 4 and 2 are equally far from 3: the shorter counts, so nothing is taken off.
    found = captions.bleu([list("abc")], [[list("abcd"), list("ab")]])
    assert found[0] == pytest.approx(1, abs=1e-6)
    short = captions.bleu([list("ab")], [[list("abcd")]])
    assert short[0] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-6)


def plain_cider(candidates, references, plain):
    """By the definition, order by order, over all n-grams there are."""
    found = np.zeros(len(candidates))
    for order in range(1, 5):

        def count(words, order=order):
            grams = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
            return {gram: grams.count(gram) for gram in grams}

        rows = [set().union(*(count(ref) for ref in refs)) for refs in references]
        idf = lambda gram: math.log(len(rows)) - math.log(max(1, sum(gram in row for row in rows)))  # noqa: E731, B023
        for i, (candidate, refs) in enumerate(zip(candidates, references, strict=True)):
            own = {g: n * idf(g) for g, n in count(candidate).items()}
            for ref in refs:
                other = {g: n * idf(g) for g, n in count(ref).items()}
                lengths = [math.sqrt(sum(x * x for x in vector.values())) for vector in (own, other)]
                pairs = [(x, other.get(g, 0)) for g, x in own.items()]
                product = sum((x if plain else min(x, y)) * y for x, y in pairs)
                if all(lengths):
                    bigrams = [max(0, len(words) - 1) for words in (candidate, ref)]
                    penalty = 1 if plain else math.exp(-((bigrams[0] - bigrams[1]) ** 2) / 72)
                    found[i] += penalty * product / lengths[0] / lengths[1] / len(refs) / 4
    return 10 * found


@pytest.mark.parametrize("plain", [False, True])
def test_cider_is_what_it_is_defined_as(plain):
    np.testing.assert_allclose(captions.cider(WORDS, REFERENCES, plain=plain), plain_cider(WORDS, REFERENCES, plain))


def test_scores_have_the_names_of_what_they_are():
    said, told = GOLDEN["captions"], GOLDEN["references"]
    scores = caption_scores.score(said, told, ("cider_plain", "cider", "rouge_l", "bleu"))
    assert list(scores) == ["cider_plain", "cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    for name, plain in (("cider", False), ("cider_plain", True)):
        assert scores[name] == pytest.approx(plain_cider(WORDS, REFERENCES, plain).mean())
    assert scores["bleu_3"] == pytest.approx(GOLDEN["bleu"][2])


def test_repeating_words_does_not_pay_but_in_plain_cider():
    references = [[["a", "red", "dog"]], [["two", "cats"]]]
    once, often = (captions.cider([["red"] * n, ["x"]], references)[0] for n in (1, 3))
    assert often <= once
    once, often = (captions.cider([["red"] * n, ["x"]], references, plain=True)[0] for n in (1, 3))
    assert often >= once


def test_a_corpus_of_one_is_worth_nothing_and_empty_captions_are_counted():
    assert captions.cider([["a", "dog"]], [[["a", "dog"]]]).tolist() == [0]
    scores = caption_scores.score(["", "a dog runs"], [["a cat"], ["a dog runs"]])
    assert 0 < scores["cider"] < 10 and scores["rouge_l"] == pytest.approx(0.5)


def test_each_video_may_be_a_corpus_of_its_own():
    said = ["a dog runs", "a cat sits", "a dog runs", "a bird"]
    told = [["a dog runs fast"], ["a cat sits"], ["the dog runs"], ["one bird flies"]]
    whole = caption_scores.score(said, told)
    apart = caption_scores.score(said, told, videos=["x", "x", "y", "y"])
    halves = [caption_scores.score(said[:2], told[:2]), caption_scores.score(said[2:], told[2:])]
    assert apart["cider"] == pytest.approx(np.mean([half["cider"] for half in halves]))
    assert apart["cider"] != pytest.approx(whole["cider"])


def test_what_cannot_be_scored_is_said():
    with pytest.raises(ValueError, match="unknown caption metric 'cidr'.*'cider'"):
        caption_scores.check(("cidr",), "corpus")
    with pytest.raises(ValueError, match=r"metrics is 'cider'.*as \('cider',\)"):
        caption_scores.check("cider", "corpus")
    with pytest.raises(ValueError, match="aggregate is 'clip'; it is one of corpus, video"):
        caption_scores.check((), "clip")
    with pytest.raises(ValueError, match="caption 1 has no reference"):
        captions.bleu([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(ValueError, match="take lists of words"):
        captions.bleu(["a dog"], [["a dog"]])


def test_meteor_asks_for_its_program(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[cocoeval\]'.*leave out the metric 'meteor'"):
        caption_scores.check(("meteor",), "corpus")
    heard = {}

    class Meteor:
        def compute_score(self, theirs, own):
            heard.update(theirs=theirs, own=own)
            return 0.25, [0.25]

    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", SimpleNamespace(Meteor=Meteor))
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no java on the path"):
        caption_scores.check(("meteor",), "corpus")
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: "/bin/java")
    assert caption_scores.score(["A dog!"], [["a cat", "It's"]], ("meteor",)) == {"meteor": 0.25}
    assert heard == {"own": {0: ["a dog"]}, "theirs": {0: ["a cat", "it 's"]}}


def event(rng):
    key = rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES)), rng.randrange(len(VERBS))
    return Event(*key, 0, 4, 4, 500, 500, 160, 0, 0)


def test_sentences_of_the_corpus_are_read_back():
    rng = random.Random(0)
    ground = Background(0, (0, 0, 0), (1, 1, 1), 100, 0, 0, 0)
    for _ in range(200):
        events = [event(rng), event(rng)]
        for text in sentences.order_captions(Scene(ground, tuple(events), 0, 8, 0)):
            assert parse_events(text) == [each.key for each in events]
        for text in sentences.narrations(events[0]):
            assert parse_events(text) == [events[0].key]
        grounds = [Background(rng.randrange(len(PATTERNS)), *list(ground.__dict__.values())[1:]) for _ in range(3)]
        scenes = tuple(Scene(g, (event(rng), event(rng)), 0, 8, -1) for g in grounds)
        told = [each.key for scene in scenes for each in scene.events]
        assert parse_events(sentences.summary(Video("x", "val", True, scenes))) == told


@pytest.mark.parametrize("text", ["", "a red", "a red circle spins then", "red circle spins", "a pink circle spins"])
def test_other_sentences_are_not(text):
    assert parse_events(text) is None


def test_an_order_is_right_where_no_other_is_as_like():
    red, blue = (0, 1, 2), (2, 3, 1)
    assert in_order([red, blue], [red, blue]) and not in_order([blue, red], [red, blue])
    assert in_order([(0, 9, 9), (9, 9, 1)], [red, blue])  # told badly, in order
    assert not in_order([(9, 9, 9), (9, 9, 9)], [red, blue])
    assert not in_order([red, red], [red, blue])  # either order is as good
    assert not in_order([red], [red, blue]) and not in_order(None, [red]) and in_order([red], [red])
