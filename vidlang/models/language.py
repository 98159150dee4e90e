"""A language model by itself: it learns texts, or is loaded, and later speaks about videos (`models/captioner.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax

from vidlang.core.config import call
from vidlang.nn.decoder import Cache, Decoder
from vidlang.nn.decoder_block import KeyValue
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.generation import Decoding, Generated, continued
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.likelihood import log_likelihood


@flax.struct.dataclass
class Output:
    """Logits of what follows each token, float32 [B, L, V]."""

    caption_BLV: jax.Array


@flax.struct.dataclass
class State:
    """What is known of the tokens so far, and of the video where there is one: keys and values [P, B, Q, A, K]."""

    cache: Cache
    seen: KeyValue | None = None

    def rows(self, parent_R: jax.Array, *, same_video: bool = False) -> State:
        """The state of these rows, which may repeat. same_video: they are of the same videos, in the same order."""
        key_value = jax.tree.map(lambda x: x[:, parent_R], self.cache.key_value)
        seen = self.seen if same_video else jax.tree.map(lambda x: x[:, parent_R], self.seen)
        return State(Cache(key_value, self.cache.used_B[parent_R]), seen)


class Model(nn.Module):
    """Decoder-only language model. language: the keys of DecoderSpec. Its parameters lie under "language"."""

    language: Mapping[str, Any]

    inputs: ClassVar[tuple[str, ...]] = ("text_BL",)

    @property
    def vocab(self) -> int:
        """Token ids that it knows."""
        return int(self.language["vocab"])

    def setup(self) -> None:
        self.decoder = Decoder(call(DecoderSpec, self.language, what="model.language"), name="language")

    def __call__(self, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        del train, dials
        return Output(self.decoder(text_BL))

    def start(self, prompt_BL: jax.Array, length_B: jax.Array, *, room: int) -> tuple[jax.Array, State]:
        """(logits [B, V] of what follows the first length_B tokens of each prompt, the state), for `room` more."""
        logits_BV, cache, _ = self.decoder.start(prompt_BL, length_B, room)
        return logits_BV, State(cache)

    def advance(self, token_B: jax.Array, state: State) -> tuple[jax.Array, State]:
        """(logits [B, V] of what follows these tokens, the state)."""
        logits_BV, cache = self.decoder.advance(token_B, state.cache)
        return logits_BV, State(cache)

    def generate(
        self, prompt_BL: jax.Array, length_B: jax.Array, rows_B: jax.Array | None = None, *, settings: Decoding
    ) -> Generated:
        """Texts that follow the first length_B tokens of each prompt."""
        return continued(self, prompt_BL, length_B, settings, rows_B)

    def likelihood(self, text_BL: jax.Array, prompt_B: jax.Array) -> jax.Array:
        """[B, 2]: the sum of log p of the tokens after the first prompt_B of each text, and how many these are."""
        return log_likelihood(self.decoder(text_BL), text_BL, prompt_B)
