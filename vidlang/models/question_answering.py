"""Questions about videos, answered by choosing among the answers of the training set (SViTT's open-ended protocol).

The question reads the clip through the fusion encoder, and its first token chooses. Towers and fusion encoder have the
paths that they have in `models/fusion.py`, so a stage starts from a pre-trained one; only the choice is new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.models import text as text_model
from vidlang.models import video as video_model
from vidlang.models.fusion import fuse, with_cls
from vidlang.nn.cross_attention import Fusion, fusion_spec
from vidlang.nn.layers import LayerNorm, Linear
from vidlang.ops.dials import OFF, Dials

HEAD = "answer"


@flax.struct.dataclass
class Encoded:
    """Video tokens, cls in front where there is one, and the question's tokens with which of them are no padding."""

    tokens_BND: jax.Array
    words_BLD: jax.Array
    valid_BL: jax.Array


@flax.struct.dataclass
class Output:
    """Logits of the answers under the head "answer", float32."""

    logits: dict[str, jax.Array]


class Model(video_model.WithVideoEncoder):
    """Video question answering as classification.

    video, text: the attributes of those models. answers: how many there are to choose from. fusion: how many `layers`,
    and what else `fusion_spec` takes.
    """

    text: Mapping[str, Any]
    answers: int
    fusion: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"layers": 3})

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC", "text_BL")

    @property
    def vocab(self) -> int:
        """Token ids that the text tower knows."""
        return int(self.text["vocab"])

    @property
    def heads(self) -> dict[str, int]:
        """Its only head and how many logits that has."""
        return {HEAD: self.answers}

    def setup(self) -> None:
        if self.answers < 1:
            raise ValueError(f"model.answers is {self.answers}; give the number of answers to choose from")
        self.video_encoder = call(video_model.Model, self.video, what="model.video")
        self.text_encoder = call(text_model.Model, self.text, what="model.text")
        spec = call(fusion_spec, self.fusion, what="model.fusion", text=self.text_encoder.spec)
        self.fusion_encoder = Fusion(spec, self.video_encoder.spec.width)
        self.answer_dense = Linear((spec.width,), (2 * spec.width,), ("embed", "mlp"), spec.compute_dtype)
        self.answer_norm = LayerNorm(2 * spec.width, spec.compute_dtype, spec.epsilon)
        self.answer_head = Linear((2 * spec.width,), (self.answers,), ("mlp", "joint"), jnp.float32)

    def __call__(self, video_BTHWC: jax.Array, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        return self.head(self.encode(video_BTHWC, text_BL, train=train, dials=dials), train=train, dials=dials)

    def encode(self, video_BTHWC: jax.Array, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Encoded:
        """What the towers make of each clip and question by itself."""
        if video_BTHWC.shape[0] != text_BL.shape[0]:
            raise ValueError(f"{video_BTHWC.shape[0]} clips and {text_BL.shape[0]} questions; they come in pairs")
        seen = self.video_encoder(video_BTHWC, train=train, dials=dials)
        read = self.text_encoder(text_BL, train=train, dials=dials)
        return Encoded(with_cls(seen), read.tokens_BLD, read.valid_BL)

    def head(self, encoded: Encoded, *, train: bool, dials: Dials = OFF) -> Output:
        """The choice, from the question's first token after it has read the clip."""
        del train
        x_BLD = fuse(self, encoded.tokens_BND, encoded.words_BLD, encoded.valid_BL, dials).x_BLD
        h_BF = constrain(self.answer_dense(x_BLD[:, 0]), "batch", "act_mlp")
        return Output({HEAD: self.answer_head(self.answer_norm(nn.gelu(h_BF, approximate=False)))})

    def answer(self, video_BTHWC: jax.Array, text_BL: jax.Array, *, dials: Dials = OFF) -> jax.Array:
        """The logits [B, answers] of clips and questions."""
        return self(video_BTHWC, text_BL, train=False, dials=dials).logits[HEAD]
