"""What lets a language model look at a video: a cross-attention and an mlp behind gates that start closed (Flamingo).

x + tanh(a) * attention(norm(x), video), then x + tanh(b) * mlp(norm(x)), with a and b zero at first: a language model
with these between its layers begins as the language model that it was.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.decoder_block import INIT, KeyValue, mlp, norm
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.layers import Linear, parameter
from vidlang.ops.attention import attend


@dataclass(frozen=True)
class CrossSpec:
    """Before which layers of a language model there is one: before the first of every `every`. heads, mlp: 0 for those
    of the language model."""

    every: int = 1
    heads: int = 0
    mlp: int = 0

    def __post_init__(self) -> None:
        for name, least in {"every": 1, "heads": 0, "mlp": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"model.cross.{name} is {value!r}; it must be a whole number from {least} on")

    def block(self, language: DecoderSpec, visual_width: int) -> GatedCross:
        """The layer between those of this language model."""
        if language.layers % self.every:
            raise ValueError(
                f"model.cross.every is {self.every}, and the language model's {language.layers} layers do not divide "
                "into runs of so many; choose another"
            )
        heads = self.heads or language.heads
        if language.width % heads:
            raise ValueError(
                f"a cross-attention of width {language.width} does not divide into {heads} heads; set model.cross.heads"
            )
        return GatedCross(language, visual_width, self.every, heads, self.mlp or language.mlp, parent=None)


class GatedCross(nn.Module):
    """A cross-attention of the language model's width, and an mlp of its kind."""

    language: DecoderSpec
    visual_width: int
    every: int
    heads: int
    mlp: int

    @property
    def spec(self) -> Any:
        """How many there are, as `declare_layers` asks."""
        return _Count(self.language.layers // self.every)

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, visual_BQD: jax.Array | None = None, known: KeyValue | None = None
    ) -> tuple[jax.Array, KeyValue]:
        """(text tokens, keys and values of the video). `known`: these, from an earlier call, in place of the video."""
        spec = self.language
        if known is None:
            if visual_BQD is None or visual_BQD.shape[-1] != self.visual_width:
                found = None if visual_BQD is None else visual_BQD.shape
                raise ValueError(f"a cross-attention reads [B, Q, {self.visual_width}] of a video; found {found}")
            # Norms over what comes from another model, so that its scale does not matter.
            visual_BQD = norm(spec, "visual_norm", self.visual_width)(visual_BQD)
            known = self._project("key", visual_BQD), self._project("value", visual_BQD)
        k_BQAK, v_BQAK = known
        q_BLAK = self._project("query", norm(spec, "attention_norm")(x_BLD))
        o_BLAK = attend(q_BLAK, k_BQAK, v_BQAK, implementation=spec.attention)
        split, names = (self.heads, spec.width // self.heads), ("heads", "head_dim", "embed")
        out = Linear(split, (spec.width,), names, spec.compute_dtype, False, INIT, name="out")
        y_BLD = constrain(out(constrain(o_BLAK, "batch", None, "act_heads", None)), "batch", None, "act_embed")
        x_BLD = x_BLD + self._gate("attention_open") * y_BLD
        y_BLD = mlp(dataclasses.replace(spec, mlp=self.mlp), norm(spec, "mlp_norm")(x_BLD))
        return x_BLD + self._gate("mlp_open") * y_BLD, known

    def _project(self, name: str, x_BSD: jax.Array) -> jax.Array:
        spec = self.language
        split, names = (self.heads, spec.width // self.heads), ("embed", "heads", "head_dim")
        linear = Linear(x_BSD.shape[-1:], split, names, spec.compute_dtype, False, INIT, name=name)
        return constrain(linear(x_BSD), "batch", None, "act_heads", None)

    def _gate(self, name: str) -> jax.Array:
        return jnp.tanh(parameter(self, name, nn.initializers.zeros, (), ())).astype(self.language.compute_dtype)


@dataclass(frozen=True)
class _Count:
    layers: int
