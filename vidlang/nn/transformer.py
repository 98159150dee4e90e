"""A stack of pre-LN transformer blocks whose L layers are one stacked pytree [L, ...].

The parameters are the same whether the layers run as one scanned loop (one compiled layer, whatever L) or unrolled,
and whatever is kept or recomputed for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.attention import SelfAttention
from vidlang.nn.layers import LayerNorm, Linear
from vidlang.ops.attention import IMPLEMENTATIONS

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
# What the backward pass finds in memory: everything, the outputs of linear maps, or only each layer's input.
REMAT = ("none", "dots", "full")


@dataclass(frozen=True)
class TransformerSpec:
    """All that makes one stack of blocks; a config's `transformer` section has these keys.

    dtype: what blocks compute in (parameters, softmax and norms stay float32). remat: "none" keeps every activation
    for the backward pass, "dots" the outputs of linear maps, "full" only the layers' inputs. scan: one compiled loop
    instead of L copies of the layer. attention: "auto", "fused" or "reference".
    """

    layers: int
    width: int
    heads: int
    mlp: int
    dtype: str = "bfloat16"
    remat: str = "none"
    scan: bool = True
    causal: bool = False
    attention: str = "auto"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"transformer.{name} is {value!r}; it must be a positive integer")
        if self.width % self.heads:
            raise ValueError(
                f"transformer.width {self.width} does not divide into {self.heads} heads; change one of them"
            )
        choices = {"dtype": tuple(DTYPES), "remat": REMAT, "attention": IMPLEMENTATIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"transformer.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")

    @property
    def compute_dtype(self) -> Any:
        """The jnp dtype that `dtype` names."""
        return DTYPES[self.dtype]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with the exact GELU."""

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x_BND: jax.Array, mask_BANS: jax.Array | None = None) -> jax.Array:
        spec, dtype = self.spec, self.spec.compute_dtype
        y_BND = LayerNorm(dtype, name="attention_norm")(x_BND)
        attention = SelfAttention(spec.heads, dtype, spec.causal, spec.attention, name="attention")
        x_BND = x_BND + attention(y_BND, mask_BANS)
        y_BND = LayerNorm(dtype, name="mlp_norm")(x_BND)
        h_BNF = Linear((spec.width,), (spec.mlp,), ("embed", "mlp"), dtype, name="mlp_in")(y_BND)
        h_BNF = nn.gelu(constrain(h_BNF, "batch", "tokens", "act_mlp"), approximate=False)
        y_BND = Linear((spec.mlp,), (spec.width,), ("mlp", "embed"), dtype, name="mlp_out")(h_BNF)
        return x_BND + constrain(y_BND, "batch", "tokens", "act_embed")


class Stack(nn.Module):
    """L blocks after one another; their parameters are one tree "layers" with a leading axis of that name."""

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x_BND: jax.Array, mask_BANS: jax.Array | None = None) -> jax.Array:
        spec = self.spec
        if x_BND.shape[-1] != spec.width:
            raise ValueError(f"tokens have width {x_BND.shape[-1]}; transformer.width is {spec.width}")
        # No parent: the block is a pure function of its slice of the parameters, not a submodule.
        block = Block(spec, parent=None)
        stacked = self.param("layers", _init_layers, block, x_BND.shape)

        def layer(x_BND: jax.Array, params: Any) -> jax.Array:
            y_BND: Any = block.apply({"params": params}, x_BND, mask_BANS)
            return y_BND

        run = _checkpointed(layer, spec)
        x_BND = x_BND.astype(spec.compute_dtype)
        if spec.scan:
            return jax.lax.scan(lambda x_BND, params: (run(x_BND, params), None), x_BND, stacked)[0]
        for index in range(spec.layers):
            x_BND = run(x_BND, jax.tree.map(lambda leaf, index=index: leaf[index], stacked))
        return x_BND


def _init_layers(key: jax.Array, block: Block, shape_BND: tuple[int, ...]) -> Any:
    """The parameters of L independent blocks, stacked; each box of logical names gains "layers" in front."""

    def init(key: jax.Array) -> Any:
        return block.init(key, jnp.zeros(shape_BND, jnp.float32))["params"]

    # jit drops the forward pass that Linen's init runs: only the parameters are asked for.
    stacked = jax.jit(jax.vmap(init))(jax.random.split(key, block.spec.layers))
    return jax.tree.map(
        lambda box: box.replace(names=("layers", *box.names)),
        stacked,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )


def _checkpointed(layer: Callable[..., jax.Array], spec: TransformerSpec) -> Callable[..., jax.Array]:
    if spec.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if spec.remat == "dots" else None
    # Inside a scan nothing can merge the recomputation with the original; unrolled, XLA would.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not spec.scan)
