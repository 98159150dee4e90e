"""Multi-head self-attention: dense over `ops.attend`, along the edges of a block graph, or along time or space."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from vidlang.core.sharding import constrain
from vidlang.nn.layers import KERNEL_INIT, Linear, parameter
from vidlang.ops.attention import attend, cls_scores, goes_round
from vidlang.ops.block_sparse import sparse_attention
from vidlang.ops.edges import BlockGraph
from vidlang.ops.relative import Grid, RelativeBias, table_rows
from vidlang.ops.widths import prefix


@flax.struct.dataclass
class Places:
    """Where tokens stand in a grid (time, rows, columns), row-major; -1 for cls. ids_BN: [B, N], or [1, N] for all."""

    ids_BN: jax.Array
    grid: Grid = flax.struct.field(pytree_node=False)


class SelfAttention(nn.Module):
    """Every token attends to every token, to those before it, to those that a mask allows, or along a graph.

    Query, key and value kernels are three parameters [D, A, K] and the output's is [A, K, D]: a narrower input meets
    the first channels and heads of each, which are a narrower layer's parameters. Where tokens come with their places,
    a table "relative" [R, A] adds a bias for every offset.
    """

    width: int
    heads: int
    dtype: Any
    causal: bool
    implementation: str
    groups: int = 1
    kernel_init: Initializer = KERNEL_INIT
    out_init: Initializer = KERNEL_INIT
    lora: tuple[int, float] = (0, 1.0)

    @nn.compact
    def __call__(
        self,
        x_BND: jax.Array,
        mask_BANS: jax.Array | None = None,
        *,
        graph: BlockGraph | None = None,
        globals: int = 0,
        score: bool = False,
        places: Places | None = None,
        along: str | None = None,
        times: int = 1,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(what the tokens got, how much the first of them attends to those after the global ones, where asked).

        along: "time" or "space", of a grid of `times` frames, for attention within its columns or its frames.
        """
        size = self.width // self.heads
        whole, split = (self.heads, size), (x_BND.shape[-1] // size, size)

        how: dict[str, Any] = {"dtype": self.dtype, "groups": self.groups, "lora": self.lora}

        def project(name: str) -> jax.Array:
            names = ("embed", "heads", "head_dim")
            layer = Linear((self.width,), whole, names, kernel_init=self.kernel_init, name=name, **how)
            return layer(x_BND, take=split)

        # Queries stay where their tokens are. So do keys and values that go round; else every device holds all of them.
        spread = along is None and graph is None and goes_round(self.implementation)
        keys = "tokens" if spread else None
        q_BNAK = constrain(project("query"), "batch", "tokens", "act_heads", None)
        k_BSAK = constrain(project("key"), "batch", keys, "act_heads", None)
        v_BSAK = constrain(project("value"), "batch", keys, "act_heads", None)
        bias = None if places is None else self._bias(places, split[0])
        if along is not None:
            plain = functools.partial(attend, implementation=self.implementation)
            o_BNAK = attend_along(along, times, q_BNAK, k_BSAK, v_BSAK, globals=globals, attend=plain)
        elif graph is not None:
            o_BNAK = sparse_attention(q_BNAK, k_BSAK, v_BSAK, graph, globals=globals, bias=bias)
        else:
            o_BNAK = attend(
                q_BNAK,
                k_BSAK,
                v_BSAK,
                mask_BANS=mask_BANS,
                bias_BANS=None if bias is None else bias.dense(),
                causal=self.causal,
                implementation=self.implementation,
                spread=spread,
            )
        score_BN = None
        if score:
            # Ranks tokens only: no gradient passes through a choice.
            bias_BAN = None if bias is None else bias.between(bias.ids_BN[:, :1], bias.ids_BN)[:, :, 0]
            score_BN = cls_scores(*jax.lax.stop_gradient((q_BNAK[:, 0], k_BSAK, bias_BAN)))[:, globals:]
        o_BNAK = constrain(o_BNAK, "batch", "tokens", "act_heads", None)
        names = ("heads", "head_dim", "embed")
        out = Linear(whole, (self.width,), names, kernel_init=self.out_init, name="out", **how)
        return constrain(out(o_BNAK, take=x_BND.shape[-1:]), "batch", "tokens", "act_embed"), score_BN

    def _bias(self, places: Places, heads: int) -> RelativeBias:
        """The bias table, at the first of its heads, with what looks up in it; it starts at zero."""
        shape, names = (table_rows(places.grid), self.heads), ("position", "heads")
        table_RA = parameter(self, "relative", nn.initializers.zeros, shape, names)
        if heads < self.heads:
            table_RA = prefix(constrain(table_RA, None, "heads"), 1, heads, self.groups)
        return RelativeBias(table_RA, places.ids_BN, places.grid)


def attend_along(
    along: str,
    times: int,
    q_BNAK: jax.Array,
    k_BNAK: jax.Array,
    v_BNAK: jax.Array,
    *,
    globals: int,
    attend: Callable[..., jax.Array],
) -> jax.Array:
    """Attention within the frames of a grid of tokens ("space"), or within what stands at one place over time ("time").

    The `globals` tokens in front of the grid are among the keys of every row, and attend to all tokens themselves.
    """
    batch, tokens, heads, size = q_BNAK.shape
    if along not in ("time", "space") or (tokens - globals) % times:
        raise ValueError(
            f"attention is along 'time' or 'space' of a grid of {times} times; found {along!r} and "
            f"{tokens - globals} tokens"
        )

    def rows(x_BNAK: jax.Array, front: int) -> jax.Array:
        """[B, N, A, K] -> [B * rows, front + tokens of a row, A, K]"""
        x_BTPAK = x_BNAK[:, globals:].reshape(batch, times, -1, heads, size)
        x_BRSAK = x_BTPAK.swapaxes(1, 2) if along == "time" else x_BTPAK
        cls_BGAK = x_BNAK[:, None, :front]
        cls_BRGAK = jnp.broadcast_to(cls_BGAK, (batch, x_BRSAK.shape[1], *cls_BGAK.shape[2:]))
        return jnp.concatenate([cls_BRGAK, x_BRSAK], axis=2).reshape(-1, front + x_BRSAK.shape[2], heads, size)

    o_RSAK = attend(rows(q_BNAK, 0), rows(k_BNAK, globals), rows(v_BNAK, globals))
    o_BRSAK = o_RSAK.reshape(batch, -1, *o_RSAK.shape[1:])
    o_BTPAK = o_BRSAK.swapaxes(1, 2) if along == "time" else o_BRSAK
    o_BNAK = o_BTPAK.reshape(batch, tokens - globals, heads, size)
    if not globals:
        return o_BNAK
    return jnp.concatenate([attend(q_BNAK[:, :globals], k_BNAK, v_BNAK), o_BNAK], axis=1)
