"""Two towers with one unit sphere between them: a clip and a text that say the same lie close together."""

from __future__ import annotations

import dataclasses
import math
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
from vidlang.nn.layers import Linear
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import OFF, Dials


@flax.struct.dataclass
class Output:
    """Unit embeddings and the scale of their cosines (the inverse temperature), all float32."""

    video_BE: jax.Array
    text_BE: jax.Array
    scale: jax.Array


@flax.struct.dataclass
class Encoded:
    """Unit embeddings of clips and texts, float32; every leaf has the batch in front."""

    video_BE: jax.Array
    text_BE: jax.Array


class Model(nn.Module):
    """Dual encoder.

    video, text: the attributes of those models. embed: size of the joint space. temperature: init (as in cosine /
    temperature), max_scale (the scale never exceeds it), learnable.
    """

    video: Mapping[str, Any]
    text: Mapping[str, Any]
    embed: int
    temperature: Mapping[str, Any]

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC", "text_BL")

    @property
    def vocab(self) -> int:
        """Token ids that the text tower knows."""
        return int(self.text["vocab"])

    @property
    def video_spec(self) -> TransformerSpec:
        """The stack that the dials act on."""
        return call(TransformerSpec, self.video["transformer"], what="model.video.transformer")

    @property
    def frozen(self) -> dict[str, int | None]:
        """What of the video tower is frozen, as the tower says it."""
        return {
            pattern.replace("^", "^video_encoder/"): rows
            for pattern, rows in call(video_model.Model, self.video, what="model.video").frozen.items()
        }

    def at(self, widths: Any) -> Model:
        """The model whose video tower is this one's at these widths; `nn.slicing` cuts its parameters out."""
        return self.clone(video={**self.video, "transformer": dataclasses.asdict(self.video_spec.cut(widths))})

    def setup(self) -> None:
        self.video_encoder = call(video_model.Model, self.video, what="model.video")
        self.text_encoder = call(text_model.Model, self.text, what="model.text")
        self.video_projection = self._projection(self.video_encoder.spec.width)
        self.text_projection = self._projection(self.text_encoder.spec.width)
        self.log_scale = call(self._log_scale, self.temperature, what="model.temperature")

    def __call__(
        self,
        video_BTHWC: jax.Array,
        text_BL: jax.Array,
        *,
        train: bool,
        dials: Dials = OFF,
    ) -> Output:
        return self.head(self.encode(video_BTHWC, text_BL, train=train, dials=dials), train=train, dials=dials)

    def encode(
        self,
        video_BTHWC: jax.Array,
        text_BL: jax.Array,
        *,
        train: bool,
        dials: Dials = OFF,
    ) -> Encoded:
        """What the towers make of each pair by itself."""
        if video_BTHWC.shape[0] != text_BL.shape[0]:
            raise ValueError(f"{video_BTHWC.shape[0]} clips and {text_BL.shape[0]} texts; they come in pairs")
        video_BE = self.embed_video(video_BTHWC, train=train, dials=dials)
        text_BE = self.embed_text(text_BL, train=train, dials=dials)
        return Encoded(video_BE, text_BE)

    def head(self, encoded: Encoded, *, train: bool, dials: Dials = OFF) -> Output:
        """What the objective needs of a whole batch of pairs."""
        del train, dials
        log_scale = clip_above(self.log_scale, math.log(self.temperature["max_scale"]))
        return Output(encoded.video_BE, encoded.text_BE, jnp.exp(log_scale))

    def embed_video(
        self,
        video_BTHWC: jax.Array,
        *,
        train: bool = False,
        dials: Dials = OFF,
    ) -> jax.Array:
        """Unit embeddings of clips."""
        output = self.video_encoder(video_BTHWC, train=train, dials=dials)
        return unit(constrain(self.video_projection(output.pooled_BD), "batch", "act_embed"))

    def embed_text(
        self,
        text_BL: jax.Array,
        *,
        train: bool = False,
        dials: Dials = OFF,
    ) -> jax.Array:
        """Unit embeddings of texts."""
        output = self.text_encoder(text_BL, train=train, dials=dials)
        return unit(constrain(self.text_projection(output.pooled_BD), "batch", "act_embed"))

    def _projection(self, width: int) -> Linear:
        return Linear((width,), (self.embed,), ("embed", "joint"), jnp.float32, bias=False)

    def _log_scale(self, init: float, max_scale: float, learnable: bool) -> jax.Array:
        if not 0.0 < 1.0 / max_scale <= init:
            raise ValueError(
                f"temperature.init is {init} and max_scale {max_scale}; the first scale, 1 / init, must lie in "
                "(0, max_scale]"
            )
        start = jnp.float32(-math.log(init))
        return self.param("log_scale", lambda _: start) if learnable else start


def unit(x_BE: jax.Array) -> jax.Array:
    """Rows of length one; a zero row stays zero, with a finite gradient."""
    square_B1 = jnp.square(x_BE).sum(axis=-1, keepdims=True)
    return x_BE * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-12))


@jax.custom_vjp
def clip_above(x: jax.Array, bound: jax.Array) -> jax.Array:
    """min(x, bound) whose gradient, at the bound and above, passes only when descent would lower x.

    A plain minimum has no gradient above its bound: one step too far and the scale would never move again. Passing
    every gradient would let x drift away from the bound for as long as the loss asks for more.
    """
    return jnp.minimum(x, bound)


def _clip_above_forward(x: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.minimum(x, bound), x >= bound


def _clip_above_backward(outside: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(outside & (gradient < 0), 0.0, gradient), None


clip_above.defvjp(_clip_above_forward, _clip_above_backward)
