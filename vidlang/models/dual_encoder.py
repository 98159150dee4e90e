"""Two towers with one unit sphere between them: a clip and a text that say the same lie close together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.models import text as text_model
from vidlang.models import video as video_model
from vidlang.nn.layers import ACTIVATIONS, Linear
from vidlang.nn.temperature import Temperature
from vidlang.ops.dials import OFF, Dials


@flax.struct.dataclass
class Output:
    """Unit embeddings and the scale of their cosines (the inverse temperature), all float32.

    bias: what is added to scale * cosine, where the temperature's section has one.
    """

    video_BE: jax.Array
    text_BE: jax.Array
    scale: jax.Array
    bias: jax.Array | None = None


@flax.struct.dataclass
class Encoded:
    """Unit embeddings of clips and texts, float32; every leaf has the batch in front."""

    video_BE: jax.Array
    text_BE: jax.Array


class Model(video_model.WithVideoEncoder):
    """Dual encoder.

    video, text: the attributes of those models. embed: size of the joint space. temperature: the keys of
    `temperature.Temperature`. video_projection, text_projection: of the linear maps into the joint space, bias (False
    unless said) and activation, by what their input passes before: EgoVLP's text has "relu". identity: there is no map,
    for the tower's width is that of the joint space (SigLIP's images).
    """

    text: Mapping[str, Any]
    embed: int
    temperature: Mapping[str, Any]
    video_projection: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text_projection: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC", "text_BL")

    @property
    def vocab(self) -> int:
        """Token ids that the text tower knows."""
        return int(self.text["vocab"])

    def setup(self) -> None:
        self.video_encoder = call(video_model.Model, self.video, what="model.video")
        self.text_encoder = call(text_model.Model, self.text, what="model.text")
        width = self.video_encoder.spec.width
        self.project_video = projection("video_projection", self.video_projection, width, self.embed)
        width = self.text_encoder.spec.width
        self.project_text = projection("text_projection", self.text_projection, width, self.embed)
        temperature = call(Temperature, self.temperature, what="model.temperature")
        self.scale, self.bias = temperature.declare(self)

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
        return Output(encoded.video_BE, encoded.text_BE, self.scale, self.bias)

    def embed_video(
        self,
        video_BTHWC: jax.Array,
        *,
        train: bool = False,
        dials: Dials = OFF,
    ) -> jax.Array:
        """Unit embeddings of clips."""
        output = self.video_encoder(video_BTHWC, train=train, dials=dials)
        return unit(constrain(self.project_video(output.pooled_BD), "batch", "act_embed"))

    def embed_text(
        self,
        text_BL: jax.Array,
        *,
        train: bool = False,
        dials: Dials = OFF,
    ) -> jax.Array:
        """Unit embeddings of texts."""
        output = self.text_encoder(text_BL, train=train, dials=dials)
        return unit(constrain(self.project_text(output.pooled_BD), "batch", "act_embed"))


def projection(name: str, section: Mapping[str, Any], width: int, embed: int) -> Callable[[jax.Array], jax.Array]:
    """The linear map of this name into the joint space, and what its section puts before it."""

    def build(bias: bool = False, activation: str = "none", identity: bool = False) -> Callable[[jax.Array], jax.Array]:
        if identity:
            if bias or activation != "none" or width != embed:
                raise ValueError(
                    f"model.{name}.identity is for towers as wide as model.embed, without bias and activation; found "
                    f"width {width} and embed {embed}: leave it out, or make them equal"
                )
            return functools.partial(_same, name, embed)
        if activation not in (known := ("none", *ACTIVATIONS)):
            raise ValueError(f"model.{name}.activation is {activation!r}; it is one of {', '.join(known)}")
        linear = Linear((width,), (embed,), ("embed", "joint"), jnp.float32, bias=bias, name=name)
        return linear if activation == "none" else lambda x_BD: linear(ACTIVATIONS[activation](x_BD))

    return call(build, section, what=f"model.{name}")


def _same(name: str, embed: int, x_BD: jax.Array) -> jax.Array:
    if x_BD.shape[-1] != embed:
        raise ValueError(
            f"model.{name}.identity takes {embed} channels, and the dial widths leaves {x_BD.shape[-1]}; leave it out, "
            "or run the last layer at its full width"
        )
    return x_BD.astype(jnp.float32)


def unit(x_BE: jax.Array) -> jax.Array:
    """Rows of length one; a zero row stays zero, with a finite gradient."""
    square_B1 = jnp.square(x_BE).sum(axis=-1, keepdims=True)
    return x_BE * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-12))
