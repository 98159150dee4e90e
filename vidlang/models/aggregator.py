"""An aggregator of long videos (AdaVid-Agg, HierVL): what segments were encoded to becomes one embedding of the whole.

A trained dual encoder has embedded the segments of each video, once and for all (docs/features.md). A small transformer
reads this short sequence, so that minutes of video cost what a sentence costs, and the text tower goes on as it was, or
frozen. Without layers it is the mean of the segments, which needs no training.
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
from vidlang.models import text as text_model
from vidlang.models.dual_encoder import Encoded, Output, projection, unit
from vidlang.nn.layers import LayerNorm, Linear, table
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.temperature import Temperature
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials

POOLS = ("mean", "cls")
# The paper gives AdaVid-Agg's 12 layers and not their width; this one is twice EgoVLP's 256 channels, in heads of 64.
ADAVID: Mapping[str, Any] = {"layers": 12, "width": 512, "heads": 8, "mlp": 2048}


class Aggregator(nn.Module):
    """From the features of segments to one vector in the joint space.

    spec: None for their mean. A linear map stands in front of the layers, and one behind them, where widths differ.
    """

    spec: TransformerSpec | None
    segments: int
    features: int
    embed: int
    pool: str

    @nn.compact
    def __call__(self, features_BSD: jax.Array, *, train: bool, rows_B: jax.Array | None) -> jax.Array:
        """float32, of no special length. rows_B: as in the dials."""
        spec, pooled_BD = self.spec, features_BSD.astype(jnp.float32).mean(axis=1)
        if spec is not None:
            tokens_BSD = self._tokens(spec, features_BSD)
            stacked = Stack(spec, name="stack")(tokens_BSD, dials=Dials(rows_B=rows_B), train=train)
            x_BSD = LayerNorm(spec.width, spec.compute_dtype, spec.epsilon, name="norm")(stacked.x_BMD)
            pooled_BD = x_BSD.astype(jnp.float32).mean(axis=1) if self.pool == "mean" else x_BSD[:, 0]
        width = pooled_BD.shape[-1]
        if width != self.embed:
            names = ("embed", "joint")
            pooled_BD = Linear((width,), (self.embed,), names, jnp.float32, bias=False, name="projection")(pooled_BD)
        return constrain(pooled_BD.astype(jnp.float32), "batch", "act_embed")

    def _tokens(self, spec: TransformerSpec, features_BSD: jax.Array) -> jax.Array:
        """What goes into the first layer."""
        width, dtype, count = spec.width, spec.compute_dtype, features_BSD.shape[1]
        x_BSD = features_BSD.astype(dtype)
        if self.features != width:
            x_BSD = Linear((self.features,), (width,), ("joint", "embed"), dtype, name="stem")(x_BSD)
        positions_SD = table(self, "positions", (self.segments, width), ("position", "embed"))
        x_BSD = x_BSD + positions_SD[None, :count].astype(dtype)
        if self.pool == "cls":
            cls_D = table(self, "cls", (width,), ("embed",))
            cls_B1D = jnp.broadcast_to(cls_D.astype(dtype), (x_BSD.shape[0], 1, width))
            x_BSD = jnp.concatenate([cls_B1D, x_BSD], axis=1)
        return constrain(x_BSD, "batch", "tokens", "act_embed")


class Model(nn.Module):
    """Dual encoder of long videos, whose video side is the aggregator.

    features: channels of a segment's features. segments: positions that are learned; fewer segments use the first of
    them. transformer: the keys of TransformerSpec, AdaVid-Agg's unless said; {"layers": 0} is the mean of the segments.
    pool: "mean" over segments or a "cls" token, as HierVL's (6 layers of width 256, 8 heads, drop_path 0.1). text,
    embed, temperature, text_projection: those of the dual encoder that the features come from, in the same places, so
    that training starts from its text tower; the optimizer's `freeze` keeps that as it is.
    """

    features: int
    text: Mapping[str, Any]
    embed: int
    temperature: Mapping[str, Any]
    segments: int = 16
    transformer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: ADAVID)
    pool: str = "mean"
    text_projection: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    inputs: ClassVar[tuple[str, ...]] = ("features_BSD", "text_BL")

    @property
    def vocab(self) -> int:
        """Token ids that the text tower knows."""
        return int(self.text["vocab"])

    def setup(self) -> None:
        spec = self._spec()
        self.aggregator = Aggregator(spec, self.segments, self.features, self.embed, self.pool)
        self.text_encoder = call(text_model.Model, self.text, what="model.text")
        width = self.text_encoder.spec.width
        self.project_text = projection("text_projection", self.text_projection, width, self.embed)
        self.scale, self.bias = call(Temperature, self.temperature, what="model.temperature").declare(self)

    def __call__(self, features_BSD: jax.Array, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        return self.head(self.encode(features_BSD, text_BL, train=train, dials=dials), train=train, dials=dials)

    def encode(self, features_BSD: jax.Array, text_BL: jax.Array, *, train: bool, dials: Dials = OFF) -> Encoded:
        """What the two sides make of each pair by itself."""
        if features_BSD.shape[0] != text_BL.shape[0]:
            raise ValueError(f"{features_BSD.shape[0]} videos and {text_BL.shape[0]} texts; they come in pairs")
        video_BE = self.embed_video(features_BSD, train=train, dials=dials)
        return Encoded(video_BE, self.embed_text(text_BL, train=train, dials=dials))

    def head(self, encoded: Encoded, *, train: bool, dials: Dials = OFF) -> Output:
        """What the objective needs of a whole batch of pairs."""
        del train, dials
        return Output(encoded.video_BE, encoded.text_BE, self.scale, self.bias)

    def embed_video(self, features_BSD: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """Unit embeddings of videos whose segments have these features."""
        if dataclasses.replace(dials, rows_B=None) != OFF:
            raise ValueError(
                f"the dials are {dials}, and an aggregator has none: how much of the encoder runs was decided when "
                "the features were extracted; leave them off, and choose a variant in clip.features"
            )
        if features_BSD.ndim != 3 or features_BSD.shape[2] != self.features:
            raise ValueError(
                f"features are [B, S, {self.features}] (model.features); found the shape {features_BSD.shape}"
            )
        if self.transformer.get("layers") and features_BSD.shape[1] > self.segments:
            raise ValueError(
                f"videos of {features_BSD.shape[1]} segments; this model has positions for {self.segments} "
                "(model.segments)"
            )
        return unit(self.aggregator(features_BSD, train=train, rows_B=dials.rows_B))

    def embed_text(self, text_BL: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """Unit embeddings of texts."""
        output = self.text_encoder(text_BL, train=train, dials=dials)
        return unit(constrain(self.project_text(output.pooled_BD), "batch", "act_embed"))

    def _spec(self) -> TransformerSpec | None:
        """The layers, checked; None for the mean of the segments."""
        for name in ("features", "segments", "embed"):
            if isinstance(value := getattr(self, name), bool) or value < 1:
                raise ValueError(f"model.{name} is {value!r}; it must be a positive whole number")
        if self.pool not in POOLS:
            raise ValueError(f"model.pool is {self.pool!r}; it is one of {', '.join(POOLS)}")
        if self.transformer.get("layers") == 0:
            if len(self.transformer) > 1 or self.pool != "mean" or self.features != self.embed:
                raise ValueError(
                    "with transformer {'layers': 0} a video is the mean of its segments, which needs no other key, "
                    f"pool 'mean', and features that lie in the joint space; found {dict(self.transformer)}, pool "
                    f"{self.pool!r}, features {self.features} and embed {self.embed}"
                )
            return None
        spec: TransformerSpec = call(TransformerSpec, self.transformer, what="model.transformer")
        for name, only in {"causal": False, "layout": "joint", "relative_positions": False, "frozen_layers": 0}.items():
            if (found := getattr(spec, name)) != only:
                raise ValueError(
                    f"model.transformer.{name} is {found!r}; in an aggregator all segments attend to all, and all "
                    f"layers train: leave it at {only!r}"
                )
        return spec
