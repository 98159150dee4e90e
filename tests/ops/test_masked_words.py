"""Masked words: who is asked, and that what becomes of them follows the published shares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.draws import row_keys
from vidlang.ops.masked_words import mask_words

VOCAB, MASK, SEP = 50, 4, 3
# Words 5 .. 9 only, so that an exchanged word is nearly always another one; a few rows are short or empty.
RNG = np.random.default_rng(0)
TEXT = RNG.integers(5, 10, (600, 24)).astype(np.int32)
TEXT[:, 0], TEXT[:, 11] = 2, SEP
TEXT[:200, 12:] = 0
TEXT[:10] = 0
VALID = np.ones(TEXT.shape, bool)
VALID[:200, 12:] = False
VALID[:10] = False
KEYS = row_keys(jax.random.key(0), None, len(TEXT))


def masked(rate: float = 0.5, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    found = mask_words(KEYS, jnp.asarray(TEXT), jnp.asarray(VALID), rate=rate, mask_id=MASK, vocab=VOCAB, **options)
    return np.asarray(found[0]), np.asarray(found[1])


def near(share: float, count: int, of: int) -> bool:
    """Whether a count is what `of` independent draws give, within four standard deviations."""
    return abs(count - share * of) < 4 * np.sqrt(share * (1 - share) * of)


def test_targets_are_the_true_words_and_all_else_stays() -> None:
    text, target = masked()
    asked = target >= 0
    np.testing.assert_array_equal(target[asked], TEXT[asked])
    np.testing.assert_array_equal(text[~asked], TEXT[~asked])
    assert set(np.unique(target[~asked])) == {-1} and text.dtype == target.dtype == np.int32


def test_padding_and_the_first_token_are_never_asked() -> None:
    _, target = masked(rate=1.0)
    may = VALID & (np.arange(24) > 0)
    np.testing.assert_array_equal(target >= 0, may)
    _, target = masked(rate=1.0, excluded=(SEP, 7))
    np.testing.assert_array_equal(target >= 0, may & (TEXT != SEP) & (TEXT != 7))


def test_no_word_becomes_padding() -> None:
    text, _ = masked(rate=1.0)
    assert (text[VALID] > 0).all() and text.max() < VOCAB


def test_shares_are_half_asked_of_which_eight_tenths_hidden_and_one_exchanged() -> None:
    text, target = masked()
    asked, may = target >= 0, VALID & (np.arange(24) > 0)
    assert near(0.5, asked.sum(), may.sum())
    count = asked.sum()
    assert near(0.8 + 0.1 / (VOCAB - 1), (text[asked] == MASK).sum(), count)
    # A random word is the true one, or the mask, as often as any other.
    assert near(0.1 * (1 - 2 / (VOCAB - 1)), ((text != TEXT) & (text != MASK))[asked].sum(), count)
    # Every place is asked alike, and exchanged words are spread over all ids.
    rows = asked[200:, 1:]
    assert (np.abs(rows.mean(axis=0) - 0.5) < 4 * 0.5 / np.sqrt(len(rows))).all()
    exchanged = np.bincount(text[asked & (text > 9)], minlength=VOCAB)[10:]
    expected = exchanged.mean()
    assert ((exchanged - expected) ** 2 / expected).sum() < 80, "chi-square of 39 degrees of freedom"


def test_rows_draw_for_themselves() -> None:
    text, target = masked()
    part = mask_words(KEYS[300:310], TEXT[300:310], VALID[300:310], rate=0.5, mask_id=MASK, vocab=VOCAB)
    np.testing.assert_array_equal(part[0], text[300:310])
    np.testing.assert_array_equal(part[1], target[300:310])
    assert ((target[200:] >= 0)[1:] != (target[200:] >= 0)[:-1]).any(axis=1).all(), "two rows drew the same"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate above 0, at most 1; found 0.0"),
        ({"mask_id": 50}, "mask_id is 50; the ids of this vocabulary are 0 to 49"),
        ({"excluded": (-1,)}, "an excluded id is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mask_words(KEYS, TEXT, VALID, **{"rate": 0.5, "mask_id": MASK, "vocab": VOCAB} | options)
