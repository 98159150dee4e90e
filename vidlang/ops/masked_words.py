"""Words to be guessed (BERT): some words of each text are hidden, exchanged or left as they are, and all are asked for.

Of the words that are asked, 80 % become the mask's id, 10 % a random word and 10 % stay: a model that could trust every
word it sees would learn nothing about those. Which ones is drawn for each row by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Shares of the words that are asked for.
HIDDEN, EXCHANGED = 0.8, 0.1
NOT_ASKED = -1


def mask_words(
    key_B: jax.Array,
    text_BL: jax.Array,
    valid_BL: jax.Array,
    *,
    rate: float,
    mask_id: int,
    vocab: int,
    excluded: Sequence[int] = (),
) -> tuple[jax.Array, jax.Array]:
    """(texts with masked words, what is asked at each place: the true id, or -1).

    Every word is asked for with probability `rate`, but for padding (`valid_BL` False), the first token, which stands
    for the whole text, and the ids in `excluded`. Random words have any id but 0, which could be taken for padding.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"words are masked at a rate above 0, at most 1; found {rate!r}")
    for name, number in (("mask_id", mask_id), *(("an excluded id", number) for number in excluded)):
        if not 0 <= number < vocab:
            raise ValueError(f"{name} is {number}; the ids of this vocabulary are 0 to {vocab - 1}")
    length = text_BL.shape[1]

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        ask, how, word = jax.random.split(key, 3)
        random_L = jax.random.randint(word, (length,), 1, vocab, text_BL.dtype)
        return jax.random.uniform(ask, (length,)), jax.random.uniform(how, (length,)), random_L

    ask_BL, how_BL, random_BL = jax.vmap(draw)(key_B)
    maskable_BL = valid_BL & (jnp.arange(length) > 0)[None]
    for number in excluded:
        maskable_BL &= text_BL != number
    asked_BL = maskable_BL & (ask_BL < rate)
    new_BL = jnp.where(how_BL < HIDDEN, mask_id, jnp.where(how_BL < HIDDEN + EXCHANGED, random_BL, text_BL))
    return jnp.where(asked_BL, new_BL, text_BL), jnp.where(asked_BL, text_BL, NOT_ASKED).astype(jnp.int32)
