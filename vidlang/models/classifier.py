"""A video encoder under one linear head or several: which of so many classes a clip shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.models import video as video_model
from vidlang.nn.layers import Linear
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.draws import row_keys


@flax.struct.dataclass
class Output:
    """For each head its logits [B, C], float32."""

    logits: dict[str, jax.Array]


class Model(video_model.WithVideoEncoder):
    """Classifier of clips.

    video: the attributes of the video encoder, which pools as it does everywhere and lies where a dual encoder has its
    own, so that training may start from one. heads: how many classes each head has, as in {"verb_label": 97,
    "noun_label": 300}; it is called like the column with its labels. dropout: of the pooled channels, in training; each
    row drops others. head_std: standard deviation that the heads' kernels start with.
    """

    heads: Mapping[str, int]
    dropout: float = 0.5
    head_std: float = 0.01

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC",)

    @property
    def head_sizes(self) -> dict[str, int]:
        """How many classes each head has, in the order in which `classify` gives their logits."""
        return dict(self.heads)

    def setup(self) -> None:
        if not self.heads:
            raise ValueError("model.heads is empty; give a head's name and classes, as in {'label': 400}")
        for name, size in self.heads.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 2:
                raise ValueError(f"model.heads gives {name!r} {size!r} classes; it is a whole number from 2 on")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout!r}; it is a share of the channels, in [0, 1)")
        self.video_encoder = call(video_model.Model, self.video, what="model.video")
        width, start = self.video_encoder.spec.width, nn.initializers.normal(self.head_std)
        self.head = {
            name: Linear((width,), (size,), ("embed", "joint"), jnp.float32, kernel_init=start)
            for name, size in self.heads.items()
        }

    def __call__(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        pooled_BD = self.embed_video(video_BTHWC, train=train, dials=dials)
        if train and self.dropout:
            pooled_BD = self._drop(pooled_BD, dials.rows_B)
        return Output({name: constrain(head(pooled_BD), "batch", "act_embed") for name, head in self.head.items()})

    def embed_video(self, video_BTHWC: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """What the heads see of clips: the pooled vectors, float32."""
        pooled_BD: jax.Array = self.video_encoder(video_BTHWC, train=train, dials=dials).pooled_BD
        return pooled_BD

    def classify(self, video_BTHWC: jax.Array, *, train: bool = False, dials: Dials = OFF) -> jax.Array:
        """The logits of all heads side by side, in the order of `heads`."""
        logits = self(video_BTHWC, train=train, dials=dials).logits
        return jnp.concatenate([logits[name] for name in self.heads], axis=1)

    def _drop(self, pooled_BD: jax.Array, rows_B: jax.Array | None) -> jax.Array:
        if not self.has_rng("dropout"):
            raise ValueError(
                f"model.dropout is {self.dropout}, which draws channels: call with rngs={{'dropout': key}}"
            )
        keys_B = row_keys(self.make_rng("dropout"), rows_B, pooled_BD.shape[0])
        stay = 1 - self.dropout
        kept_BD = jax.vmap(lambda key: jax.random.bernoulli(key, stay, pooled_BD.shape[1:]))(keys_B)
        return jnp.where(kept_BD, pooled_BD / stay, 0.0)
