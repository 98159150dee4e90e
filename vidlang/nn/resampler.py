"""The Perceiver resampler: a fixed number of learned latents read the tokens of a video, layer by layer (Flamingo).

In each layer the latents attend to the tokens and to themselves, then pass through an mlp. What comes out has as many
tokens as there are latents, whatever went in.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.layers import ACTIVATIONS, LayerNorm, Linear, table
from vidlang.nn.segments import checkpointed
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import declare_layers
from vidlang.ops.attention import attend


@dataclass(frozen=True)
class ResamplerSpec:
    """LongViViT's settings, with as many latents as a frame of 256 pixels has tokens. dtype, remat: as everywhere."""

    layers: int = 3
    width: int = 1024
    heads: int = 8
    mlp: int = 4096
    latents: int = 256
    dtype: str = "bfloat16"
    remat: str = "none"

    def __post_init__(self) -> None:
        if isinstance(self.latents, bool) or not isinstance(self.latents, int) or self.latents < 1:
            raise ValueError(f"model.resampler.latents is {self.latents!r}; it is a number of tokens, from 1 on")
        try:
            self.stack()  # checks the rest
        except ValueError as error:
            raise ValueError(str(error).replace("transformer.", "model.resampler.")) from None

    def stack(self) -> TransformerSpec:
        """The same as settings of a stack."""
        return TransformerSpec(self.layers, self.width, self.heads, self.mlp, dtype=self.dtype, remat=self.remat)


class ResamplerBlock(nn.Module):
    """latents + attention(norm(latents) to norm(tokens) and norm(latents)), then + mlp(norm(latents))."""

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x_BQD: jax.Array, tokens_BSD: jax.Array) -> jax.Array:
        spec, dtype = self.spec, self.spec.compute_dtype

        def norm(name: str, x: jax.Array) -> jax.Array:
            return LayerNorm(spec.width, dtype, spec.epsilon, name=name)(x)

        def project(name: str, x: jax.Array) -> jax.Array:
            split, names = (spec.heads, spec.width // spec.heads), ("embed", "heads", "head_dim")
            y = Linear((spec.width,), split, names, dtype, bias=False, name=name)(x)
            return constrain(y, "batch", None, "act_heads", None)

        y_BQD = norm("attention_norm", x_BQD)
        read_BSD = jnp.concatenate([norm("tokens_norm", tokens_BSD), y_BQD], axis=1)
        o_BQAK = attend(project("query", y_BQD), project("key", read_BSD), project("value", read_BSD))
        split, names = (spec.heads, spec.width // spec.heads), ("heads", "head_dim", "embed")
        out = Linear(split, (spec.width,), names, dtype, bias=False, name="out")
        x_BQD = x_BQD + constrain(out(constrain(o_BQAK, "batch", None, "act_heads", None)), "batch", None, "act_embed")
        h_BQF = Linear((spec.width,), (spec.mlp,), ("embed", "mlp"), dtype, name="mlp_in")(norm("mlp_norm", x_BQD))
        h_BQF = ACTIVATIONS["gelu"](constrain(h_BQF, "batch", None, "act_mlp"))
        y_BQD = Linear((spec.mlp,), (spec.width,), ("mlp", "embed"), dtype, name="mlp_out")(h_BQF)
        return x_BQD + constrain(y_BQD, "batch", None, "act_embed")


class Resampler(nn.Module):
    """Tokens [B, S, D] of any number become latents [B, Q, width]; a narrower input meets the first channels."""

    settings: ResamplerSpec
    into: int  # channels of the tokens

    @nn.compact
    def __call__(self, tokens_BSD: jax.Array) -> jax.Array:
        spec = self.settings.stack()
        width, dtype = spec.width, spec.compute_dtype
        stem = Linear((self.into,), (width,), ("embed", "joint"), dtype, name="stem")
        tokens_BSD = constrain(stem(tokens_BSD), "batch", None, "act_embed")
        latents_QD = table(self, "latents", (self.settings.latents, width), ("position", "embed"))
        x_BQD = jnp.broadcast_to(latents_QD.astype(dtype), (tokens_BSD.shape[0], *latents_QD.shape))
        # No parent: a block is a pure function of its slice of the parameters, not a submodule.
        block = ResamplerBlock(spec, parent=None)
        options = {"tokens_BSD": jnp.zeros((x_BQD.shape[0], 1, width))}
        params = declare_layers(self, "layers", block, x_BQD.shape, options)
        step = checkpointed(lambda x, params: block.apply({"params": params}, x, tokens_BSD), spec)
        x_BQD, _ = jax.lax.scan(lambda x, params: (step(x, params), None), x_BQD, params)
        return LayerNorm(width, dtype, spec.epsilon, name="norm")(x_BQD)
