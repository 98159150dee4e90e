"""Matching, masked words and captions against loops over what is asked."""

import jax
import numpy as np
import pytest

from tests.objectives.by_hand import check, log_sum, run
from vidlang.objectives import captioning, masked_lm, matching


def weighted_mean(terms):
    """Of (value, weight) pairs."""
    return sum(value * weight for value, weight in terms) / sum(weight for _, weight in terms)


def test_matching_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    target = np.repeat([1, 0, 0], 8).astype(np.int32)
    weight, valid = np.arange(8) + 1.0, np.arange(8) != 2

    def reference(outputs):
        loss = log_sum(outputs["match_M2"]) - outputs["match_M2"][np.arange(24), target]
        return weighted_mean([(loss[m], weight[m % 8]) for m in range(24) if valid[m % 8]])

    outputs = {"match_M2": rng.normal(size=(24, 2)), "match_target_M": target}
    batch = {"weight_B": weight, "valid_B": valid}
    _, scalars, _ = check(matching, reference, outputs, batch, {"data": 8})
    right = (outputs["match_M2"].argmax(axis=1) == target)[np.tile(valid, 3)].reshape(3, 7)
    assert scalars["accuracy"] == pytest.approx(right.mean())
    assert (scalars["accuracy_true"], scalars["accuracy_false"]) == pytest.approx((right[0].mean(), right[1:].mean()))


def test_masked_words_count_alike_and_nothing_else_counts():
    rng = np.random.default_rng(1)
    target = np.where(rng.random((8, 5)) < 0.4, rng.integers(0, 11, (8, 5)), -1).astype(np.int32)
    target[3], target[5, 1] = -1, 4
    valid, weight = np.arange(8) != 5, np.arange(8) + 1.0

    def reference(outputs):
        loss = log_sum(outputs["word_BLV"])
        places = [(b, place) for b in range(8) for place in range(5) if valid[b] and target[b, place] >= 0]
        return weighted_mean([(loss[b, i] - outputs["word_BLV"][b, i, target[b, i]], weight[b]) for b, i in places])

    logits = 3 * rng.normal(size=(8, 5, 11))
    logits[:, :2] += 4 * (np.arange(11) == target[:, :2, None])
    outputs = {"word_BLV": logits, "word_target_BL": target}
    batch = {"valid_B": valid, "weight_B": weight}
    _, scalars, _ = check(masked_lm, reference, outputs, batch, {"data": 2, "fsdp": 4})
    asked = (target >= 0) & valid[:, None]
    hits = outputs["word_BLV"].argmax(axis=2) == target
    assert scalars["accuracy"] == pytest.approx(hits[asked].mean())
    assert scalars["asked"] == pytest.approx(asked.sum() / 7)


def test_nothing_masked_is_no_loss_and_a_word_beyond_the_vocabulary_is_not_learned_as_another():
    logits = np.ones((2, 3, 4), np.float32)
    (value, _), gradients = run(masked_lm, {"word_BLV": logits, "word_target_BL": np.full((2, 3), -1, np.int32)}, {})
    assert value == 0 and not gradients["word_BLV"].any()
    (value, _), _ = run(masked_lm, {"word_BLV": logits, "word_target_BL": np.full((2, 3), 4, np.int32)}, {})
    assert np.isnan(value)


# The second text has a word with id 0 inside, and the third one is full.
CAPTIONS = np.array([[5, 3, 6, 0, 0], [5, 0, 4, 6, 0], [5, 1, 2, 3, 6], [5, 6, 0, 0, 0]], np.int32)
NEXT = {0: {0: 3, 1: 6}, 1: {0: 0, 1: 4, 2: 6}, 2: {0: 1, 1: 2, 2: 3, 3: 6}, 3: {0: 6}}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_captions_ask_for_each_next_token_and_not_for_padding(smoothing):
    weight = np.array([1.0, 2.0, 0.5, 3.0])

    def reference(outputs):
        logits, terms = outputs["caption_BLV"], []
        for b, words in NEXT.items():
            for place, word in words.items():
                likely = logits[b, place] - log_sum(logits[b, place])
                wanted = np.full(7, smoothing / 7)
                wanted[word] += 1 - smoothing
                terms.append((-wanted @ likely, weight[b]))
        return weighted_mean(terms)

    outputs = {"caption_BLV": np.random.default_rng(2).normal(size=(4, 5, 7))}
    batch = {"text_BL": CAPTIONS, "weight_B": weight}
    _, scalars, gradients = check(captioning, reference, outputs, batch, label_smoothing=smoothing)
    asked = {(b, place) for b, words in NEXT.items() for place in words}
    assert {tuple(place) for place in np.argwhere(gradients["caption_BLV"].any(axis=2))} == asked
    hits = [outputs["caption_BLV"][b, place].argmax() == NEXT[b][place] for b, place in asked]
    assert scalars["accuracy"] == pytest.approx(np.mean(hits)) and scalars["asked"] == len(asked) / 4


def test_rows_that_are_not_valid_say_no_words():
    outputs = {"caption_BLV": np.random.default_rng(2).normal(size=(4, 5, 7))}
    with jax.enable_x64(True):
        (few, _), _ = run(captioning, {"caption_BLV": outputs["caption_BLV"][:3]}, {"text_BL": CAPTIONS[:3]})
        outputs["caption_BLV"][3] = np.nan
        batch = {"text_BL": CAPTIONS, "valid_B": np.arange(4) < 3}
        (value, _), gradients = run(captioning, outputs, batch)
    np.testing.assert_allclose(value, few, rtol=1e-12)
    assert not gradients["caption_BLV"][3].any()


@pytest.mark.parametrize(
    ("objective", "outputs", "options", "message"),
    [
        (matching, {"match_M2": np.ones((6, 3)), "match_target_M": np.ones(6, int)}, {}, r"\(6, 3\) and \(6,\)"),
        (matching, {"match_M2": np.ones((6, 2)), "match_target_M": np.ones(6, int)}, {}, "6 pairs for a batch of 4"),
        (masked_lm, {"word_BLV": np.ones((4, 3, 2)), "word_target_BL": np.ones((4, 2), int)}, {}, r"\(4, 2\)"),
        (captioning, {"caption_BLV": np.ones((4, 4, 2))}, {}, r"text_BL \[B, L\]; found the shapes \(4, 4, 2\)"),
        (captioning, {"caption_BLV": np.ones((4, 5, 2))}, {"label_smoothing": 1.0}, "from 0 to below 1; found 1.0"),
    ],
)
def test_wrong_use_says_what_was_found(objective, outputs, options, message):
    with pytest.raises(ValueError, match=message):
        run(objective, outputs, {"text_BL": CAPTIONS, "valid_B": np.ones(4, bool)}, **options)
