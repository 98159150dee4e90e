"""A dual encoder of four matrices, for tests of training: quick to compile, and still it masks, shards and learns."""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.ops.dials import Dials


@flax.struct.dataclass
class Output:
    """What the contrastive objective reads."""

    video_BE: jax.Array
    text_BE: jax.Array
    scale: jax.Array


class Model(nn.Module):
    """Mean frame through two matrices, mean word through one."""

    width: int = 16
    embed: int = 8
    vocab: int = 128
    fail: str = ""  # "nan": the scale is no number

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC", "text_BL")

    @nn.compact
    def __call__(self, video_BTHWC, text_BL, *, train, dials=Dials()):  # noqa: B008
        scale = self.param("log_scale", nn.initializers.constant(1.0), ())
        scale = scale / 0.0 * 0.0 if self.fail == "nan" and train else scale
        return Output(self.embed_video(video_BTHWC, train=train, dials=dials), self.embed_text(text_BL), jnp.exp(scale))

    @nn.compact
    def embed_video(self, video_BTHWC, *, train=False, dials=Dials()):  # noqa: B008
        x_BP = (video_BTHWC.astype(jnp.float32) / 255 - 0.5).mean(axis=1).reshape(video_BTHWC.shape[0], -1)
        if dials.mask:
            x_BP *= jax.random.bernoulli(self.make_rng("mask"), 1 - dials.mask, x_BP.shape)
        h_BF = jnp.tanh(constrain(x_BP @ self._matrix("video_in", (x_BP.shape[1], self.width), "embed"), "batch", None))
        return _unit(h_BF @ self._matrix("video_out", (self.width, self.embed), "mlp"))

    @nn.compact
    def embed_text(self, text_BL):
        words_VF = self._matrix("words", (self.vocab, self.width), "embed")
        return _unit(
            jnp.take(words_VF, text_BL, axis=0).mean(axis=1) @ self._matrix("text_out", (self.width, self.embed), "mlp")
        )

    def _matrix(self, name, shape, axis):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.1), (axis, None))
        return self.param(name, init, shape)


def _unit(x_BE):
    return x_BE * jax.lax.rsqrt(jnp.square(x_BE).sum(axis=1, keepdims=True) + 1e-6)
