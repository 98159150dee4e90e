"""Generation: one compiled loop that asks a language model for one token after another, with its cache.

It works on anything with `start` and `advance` (`models.language`, `models.captioner`). Rows have prompts of unequal
lengths, padded on the right. A row that has ended goes on as zeros; the loop ends when all rows have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.ops import decoding
from vidlang.ops.draws import row_keys

HOW = ("greedy", "beam", "nucleus")
# What a model does first: (prompt [R, L], lengths [R]) -> (logits [R, V], state); and then: (token [R], state) -> same.
Start = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
Advance = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class Decoding:
    """How texts are made; a config's `decoding` section has these keys.

    how: "greedy", the most likely token each time; "beam", the `beams` best texts side by side, compared by log p over
    ((5 + length) / 6) ** length_penalty; "nucleus", drawn from the most likely tokens that have top_p of the chances,
    after their logits were divided by temperature. samples: texts for each row, drawn ones or the best beams. max_new,
    min_new: most and fewest tokens, the one that ends a text included. stop_ids: tokens that end a text; an evaluation
    adds the tokenizer's own. seed: of what is drawn.
    """

    how: str = "greedy"
    max_new: int = 32
    min_new: int = 0
    beams: int = 4
    length_penalty: float = 0.6
    top_p: float = 0.95
    temperature: float = 1.0
    samples: int = 1
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        if self.how not in HOW:
            raise ValueError(f"decoding.how is {self.how!r}; it is one of {', '.join(HOW)}")
        for name, least in {"max_new": 1, "min_new": 0, "beams": 1, "samples": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"decoding.{name} is {value!r}; it must be a whole number from {least} on")
        if not 0 < self.top_p <= 1 or not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"decoding.top_p is {self.top_p!r} and temperature {self.temperature!r}; the one is a share above 0 "
                "and up to 1, the other 0 or more"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"decoding.length_penalty is {self.length_penalty!r}; it must be a number, as 0.6")
        most = {"greedy": 1, "beam": self.beams, "nucleus": self.samples}[self.how]
        if self.samples > most:
            raise ValueError(
                f"decoding.samples is {self.samples}, and {self.how} search gives {most} text(s) a row; "
                + ("set how='nucleus'" if self.how == "greedy" else "set beams as high")
            )
        if self.min_new > self.max_new:
            raise ValueError(
                f"decoding.min_new is {self.min_new} and max_new {self.max_new}; the fewest cannot be more than the "
                "most, so change one"
            )
        for token in self.stop_ids:
            if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                raise ValueError(f"decoding.stop_ids has {token!r}; they are token ids, whole numbers from 0 on")


@flax.struct.dataclass
class Generated:
    """New tokens int32 [B, samples, max_new], zeros behind the one that ended a text; how many each has, and its score:
    the model's log p, of beams over the norm of their length. Beams come best first, drawn texts as they were drawn."""

    tokens_BSN: jax.Array
    length_BS: jax.Array
    score_BS: jax.Array


def generate(
    start: Start,
    advance: Advance,
    prompt_BL: jax.Array,
    length_B: jax.Array,
    settings: Decoding,
    rows_B: jax.Array | None = None,
) -> Generated:
    """Texts that follow the first length_B tokens of each prompt; what is drawn for a row follows from rows_B only."""
    logits_BV, state = start(prompt_BL, length_B)
    if settings.how == "beam" and settings.beams > 1:
        return _beam_search(advance, logits_BV, state, settings)
    batch, samples = logits_BV.shape[0], settings.samples
    parent_R = jnp.repeat(jnp.arange(batch), samples)
    key = jax.random.key(settings.seed)
    keys_B = row_keys(key, rows_B, batch)
    keys_R = jax.vmap(jax.random.fold_in)(keys_B[parent_R], jnp.tile(jnp.arange(samples), batch))
    if samples > 1:
        logits_BV, state = logits_BV[parent_R], state.rows(parent_R)
    tokens_RN, length_R, score_R = _one_by_one(advance, logits_BV, state, keys_R, settings)
    if settings.how == "beam":  # one beam is greedy search
        score_R = score_R / decoding.length_norm(length_R, settings.length_penalty)
    return Generated(
        tokens_RN.reshape(batch, samples, -1), length_R.reshape(batch, samples), score_R.reshape(batch, samples)
    )


def continued(
    model: nn.Module,
    prompt_BL: jax.Array,
    length_B: jax.Array,
    settings: Decoding,
    rows_B: jax.Array | None = None,
    *seen: jax.Array,
) -> Generated:
    """`generate` by a bound model; `seen` is what its `start` takes beside a prompt."""
    # A loop of JAX cannot call a bound module: it calls the same model as a function of the same parameters.
    variables, free = {"params": model.variables["params"]}, model.clone(parent=None)

    def start(prompt_BL: jax.Array, length_B: jax.Array) -> Any:
        return free.apply(variables, prompt_BL, length_B, *seen, room=settings.max_new, method="start")

    def advance(token_B: jax.Array, state: Any) -> Any:
        return free.apply(variables, token_B, state, method="advance")

    return generate(start, advance, prompt_BL, length_B, settings, rows_B)


def _one_by_one(
    advance: Advance, logits_RV: jax.Array, state: Any, keys_R: jax.Array, settings: Decoding
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens, lengths, scores) where each row is one text."""
    rows = logits_RV.shape[0]
    temperature = settings.temperature if settings.how == "nucleus" else 0.0

    def more(carry: Any) -> jax.Array:
        step, done_R = carry[0], carry[1]
        return (step < settings.max_new) & ~done_R.all()

    def once(carry: Any) -> Any:
        step, done_R, tokens_RN, score_R, logits_RV, state = carry
        log_p_RV = jax.nn.log_softmax(logits_RV, axis=-1)
        may_RV = decoding.forbid(log_p_RV, settings.stop_ids, step + 1 < settings.min_new)
        now_R = jax.vmap(jax.random.fold_in, (0, None))(keys_R, step)
        token_R = decoding.draw(now_R, may_RV, temperature, settings.top_p)
        log_p_R = jnp.take_along_axis(log_p_RV, token_R[:, None], axis=-1)[:, 0]
        score_R = score_R + jnp.where(done_R, 0.0, log_p_R)
        tokens_RN = tokens_RN.at[:, step].set(jnp.where(done_R, 0, token_R))
        done_R = done_R | decoding.is_one_of(token_R, settings.stop_ids)
        logits_RV, state = advance(token_R, state)
        return step + 1, done_R, tokens_RN, score_R, logits_RV, state

    nothing = jnp.zeros((rows, settings.max_new), jnp.int32)
    carry = jnp.int32(0), jnp.zeros(rows, bool), nothing, jnp.zeros(rows, jnp.float32), logits_RV, state
    _, _, tokens_RN, score_R, _, _ = jax.lax.while_loop(more, once, carry)
    return tokens_RN, lengths(tokens_RN, settings), score_R


def _beam_search(advance: Advance, logits_BV: jax.Array, state: Any, settings: Decoding) -> Generated:
    batch, count, longest, power = logits_BV.shape[0], settings.beams, settings.max_new, settings.length_penalty
    first_R = jnp.repeat(jnp.arange(batch), count)

    def more(carry: Any) -> jax.Array:
        step, beams = carry[0], carry[1]
        return (step < longest) & decoding.can_improve(beams, longest, power, settings.samples).any()

    def once(carry: Any) -> Any:
        step, beams, logits_RV, state = carry
        log_p_RV = jax.nn.log_softmax(logits_RV, axis=-1)
        may_RV = decoding.forbid(log_p_RV, settings.stop_ids, step + 1 < settings.min_new)
        may_BKV = may_RV.reshape(batch, count, -1)
        beams, parent_BK, token_BK = decoding.extend(beams, may_BKV, step, settings.stop_ids, power)
        parent_R = (jnp.arange(batch)[:, None] * count + parent_BK).reshape(-1)
        logits_RV, state = advance(token_BK.reshape(-1), state.rows(parent_R, same_video=True))
        return step + 1, beams, logits_RV, state

    beams = decoding.Beams.begin(batch, count, longest)
    carry = jnp.int32(0), beams, logits_BV[first_R], state.rows(first_R)
    _, beams, _, _ = jax.lax.while_loop(more, once, carry)
    tokens_BKN, score_BK = decoding.finish(beams, longest, power)
    tokens_BSN = tokens_BKN[:, : settings.samples]
    return Generated(tokens_BSN, lengths(tokens_BSN, settings), score_BK[:, : settings.samples])


def lengths(tokens_N: jax.Array, settings: Decoding) -> jax.Array:
    """How many tokens each text [..., N] has: up to and with the first that ends it, or all."""
    ends_N = decoding.is_one_of(tokens_N, settings.stop_ids)
    return jnp.where(ends_N.any(axis=-1), jnp.argmax(ends_N, axis=-1) + 1, tokens_N.shape[-1]).astype(jnp.int32)
