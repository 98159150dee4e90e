"""Video to text (LongViViT): a video encoder and a language model, both frozen, joined by parts that alone learn.

The encoder's tokens are averaged over time, so that there are as many as one frame has however long the video is: what
they say of time is what the encoder's positions put into them. A Perceiver resampler makes a fixed number of latents of
these, and before every k-th layer the language model looks at them through a gated cross-attention.

Encoder and language model have the paths that they have in the models they come from, "video_encoder" and "language".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.models import video as video_model
from vidlang.models.language import Output, State
from vidlang.nn.decoder import Cross, Decoder
from vidlang.nn.decoder_block import KeyValue, few_rows
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.gated_cross import CrossSpec, GatedCross
from vidlang.nn.generation import Decoding, Generated, continued
from vidlang.nn.resampler import Resampler, ResamplerSpec
from vidlang.nn.transformer import declare_layers
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.likelihood import log_likelihood
from vidlang.ops.pooling import mean_over_time


class Model(video_model.WithVideoEncoder):
    """Captioner.

    video: the attributes of that model. language: the keys of DecoderSpec. resampler: the keys of ResamplerSpec, or
    None for none: then the layers look at the encoder's tokens. cross: the keys of CrossSpec. pool_time: average the
    tokens over time first. train_video, train_language: whether these learn too.
    """

    language: Mapping[str, Any]
    resampler: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    cross: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pool_time: bool = True
    train_video: bool = False
    train_language: bool = False

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC", "text_BL")

    @property
    def vocab(self) -> int:
        """Token ids that the language model knows."""
        return int(self.language["vocab"])

    @property
    def frozen(self) -> dict[str, int | None]:
        """What gets no gradient: encoder and language model, unless they learn too."""
        found: dict[str, int | None] = {"^video_encoder/": None}
        if self.train_video:
            found = dict(super().frozen)
        return found if self.train_language else {**found, "^language/": None}

    def setup(self) -> None:
        self.video_encoder = call(video_model.Model, self.video, what="model.video")
        spec = call(DecoderSpec, self.language, what="model.language")
        self.decoder = Decoder(spec, name="language")
        width = self.video_encoder.spec.width
        if self.resampler is not None:
            settings = call(ResamplerSpec, self.resampler, what="model.resampler")
            self.reader, width = Resampler(settings, width, name="resampler"), settings.width
        self.looking = Looking(call(CrossSpec, self.cross, what="model.cross").block(spec, width), name="cross")

    def __call__(self, video_BTHWC: jax.Array, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        if video_BTHWC.shape[0] != text_BL.shape[0]:
            raise ValueError(f"{video_BTHWC.shape[0]} clips and {text_BL.shape[0]} texts; they come in pairs")
        visual_BQD = self._look(video_BTHWC, train=train, dials=dials)
        return Output(self.decoder(text_BL, self.looking(visual_BQD)))

    def see(self, video_BTHWC: jax.Array, *, dials: Dials = OFF) -> jax.Array:
        """All that the language model looks at of clips, float32 [B, Q, D]."""
        return self._look(video_BTHWC, train=False, dials=dials).astype(jnp.float32)

    def start(
        self, prompt_BL: jax.Array, length_B: jax.Array, visual_BQD: jax.Array, *, room: int
    ) -> tuple[jax.Array, State]:
        """(logits [B, V] of what follows the first length_B tokens of each prompt, the state), for `room` more."""
        logits_BV, cache, seen = self.decoder.start(prompt_BL, length_B, room, self.looking(visual_BQD))
        return logits_BV, State(cache, seen)

    def advance(self, token_B: jax.Array, state: State) -> tuple[jax.Array, State]:
        """(logits [B, V] of what follows these tokens, the state)."""
        logits_BV, cache = self.decoder.advance(token_B, state.cache, self.looking(None, state.seen))
        return logits_BV, State(cache, state.seen)

    def generate(
        self,
        visual_BQD: jax.Array,
        prompt_BL: jax.Array,
        length_B: jax.Array,
        rows_B: jax.Array | None = None,
        *,
        settings: Decoding,
    ) -> Generated:
        """Texts about clips that were seen, after the first length_B tokens of each prompt."""
        return continued(self, prompt_BL, length_B, settings, rows_B, visual_BQD)

    def likelihood(self, visual_BQD: jax.Array, text_BL: jax.Array, prompt_B: jax.Array) -> jax.Array:
        """[B, 2]: the sum of log p of the tokens after the first prompt_B of each text, and how many these are."""
        return log_likelihood(self.decoder(text_BL, self.looking(visual_BQD)), text_BL, prompt_B)

    def _look(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials) -> jax.Array:
        seen = self.video_encoder(video_BTHWC, train=train and self.train_video, dials=dials)
        tokens_BMD = seen.tokens_BMD
        if not self.train_video:
            tokens_BMD = jax.lax.stop_gradient(tokens_BMD)
        if self.pool_time:
            frames, height, width = video_BTHWC.shape[1:4]
            grid = video_model.grid_of(self.video_encoder, (frames, height, width))
            if grid is None:
                raise ValueError(
                    "model.pool_time averages tokens of one place over time, and views (TubeViT) share no places; set "
                    "pool_time=False"
                )
            tokens_BMD = mean_over_time(tokens_BMD, seen.kept_BM, grid)
        tokens_BMD = constrain(tokens_BMD, "batch", None, "act_embed")
        if self.resampler is not None:
            return self.reader(tokens_BMD)
        width, whole = tokens_BMD.shape[-1], self.video_encoder.spec.width
        if width != whole:
            raise ValueError(
                f"without a resampler, the language model looks at all {whole} channels of the video encoder; found "
                f"the {width} that the dial widths leaves. Give the model a resampler, or leave the dial out"
            )
        return tokens_BMD


class Looking(nn.Module):
    """The parameters of all gated cross-attentions, one stacked tree "layers" with a leading axis."""

    block: GatedCross

    @nn.compact
    def __call__(self, visual_BQD: jax.Array | None, key_value: KeyValue | None = None) -> Cross:
        """The layers, ready to look at a video, or at what they made of it before."""
        block = self.block
        rows = few_rows()
        options = {"visual_BQD": jnp.zeros((rows, 1, block.visual_width))}
        params = declare_layers(self, "layers", block, (rows, 1, block.language.width), options)
        if visual_BQD is not None:
            visual_BQD = visual_BQD.astype(block.language.compute_dtype)
        return Cross(block, params, visual_BQD, key_value)
