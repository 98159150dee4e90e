"""Multi-head self-attention: dense over `ops.attend`, or along the edges of a block graph."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vidlang.core.sharding import constrain
from vidlang.nn.layers import Linear
from vidlang.ops.attention import attend, cls_scores
from vidlang.ops.block_sparse import sparse_attention
from vidlang.ops.edges import BlockGraph


class SelfAttention(nn.Module):
    """Every token attends to every token, to those before it, to those that a mask allows, or along a graph.

    Query, key and value kernels are three parameters [D, A, K] and the output's is [A, K, D]: a narrower input meets
    the first channels and heads of each, which are a narrower layer's parameters.
    """

    width: int
    heads: int
    dtype: Any
    causal: bool
    implementation: str
    groups: int = 1

    @nn.compact
    def __call__(
        self,
        x_BND: jax.Array,
        mask_BANS: jax.Array | None = None,
        *,
        graph: BlockGraph | None = None,
        globals: int = 0,
        score: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(what the tokens got, how much the first of them attends to those after the global ones, where asked)."""
        size = self.width // self.heads
        whole, split = (self.heads, size), (x_BND.shape[-1] // size, size)

        def project(name: str) -> jax.Array:
            names = ("embed", "heads", "head_dim")
            layer = Linear((self.width,), whole, names, self.dtype, groups=self.groups, name=name)
            return layer(x_BND, take=split)

        # Queries stay where their tokens are; every device holds all keys and values.
        q_BNAK = constrain(project("query"), "batch", "tokens", "act_heads", None)
        k_BSAK = constrain(project("key"), "batch", None, "act_heads", None)
        v_BSAK = constrain(project("value"), "batch", None, "act_heads", None)
        if graph is not None:
            o_BNAK = sparse_attention(q_BNAK, k_BSAK, v_BSAK, graph, globals=globals)
        else:
            o_BNAK = attend(
                q_BNAK,
                k_BSAK,
                v_BSAK,
                mask_BANS=mask_BANS,
                causal=self.causal,
                implementation=self.implementation,
            )
        score_BN = None
        if score:
            # Ranks tokens only: no gradient passes through a choice.
            q_BAK, k_BSAK = jax.lax.stop_gradient((q_BNAK[:, 0], k_BSAK))
            score_BN = cls_scores(q_BAK, k_BSAK)[:, globals:]
        o_BNAK = constrain(o_BNAK, "batch", "tokens", "act_heads", None)
        names = ("heads", "head_dim", "embed")
        out = Linear(whole, (self.width,), names, self.dtype, groups=self.groups, name="out")
        return constrain(out(o_BNAK, take=x_BND.shape[-1:]), "batch", "tokens", "act_embed"), score_BN
