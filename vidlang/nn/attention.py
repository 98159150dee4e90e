"""Multi-head self-attention over `ops.attend`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vidlang.core.sharding import constrain
from vidlang.nn.layers import Linear
from vidlang.ops.attention import attend


class SelfAttention(nn.Module):
    """Every token attends to every token, to those before it, or to those that a mask allows.

    Query, key and value kernels are three parameters [D, A, K] and the output's is [A, K, D]: the first channels and
    heads of each are a narrower layer's parameters.
    """

    heads: int
    dtype: Any
    causal: bool
    implementation: str

    @nn.compact
    def __call__(self, x_BND: jax.Array, mask_BANS: jax.Array | None = None) -> jax.Array:
        width = x_BND.shape[-1]
        split = (self.heads, width // self.heads)

        def project(name: str) -> jax.Array:
            names = ("embed", "heads", "head_dim")
            return Linear((width,), split, names, self.dtype, name=name)(x_BND)

        # Queries stay where their tokens are; every device holds all keys and values.
        q_BNAK = constrain(project("query"), "batch", "tokens", "act_heads", None)
        k_BSAK = constrain(project("key"), "batch", None, "act_heads", None)
        v_BSAK = constrain(project("value"), "batch", None, "act_heads", None)
        o_BNAK = attend(
            q_BNAK,
            k_BSAK,
            v_BSAK,
            mask_BANS=mask_BANS,
            causal=self.causal,
            implementation=self.implementation,
        )
        o_BNAK = constrain(o_BNAK, "batch", "tokens", "act_heads", None)
        out = Linear(split, (width,), ("heads", "head_dim", "embed"), self.dtype, name="out")
        return constrain(out(o_BNAK), "batch", "tokens", "act_embed")
