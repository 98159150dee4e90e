"""Linear, norms, LayerScale and Embed: parameters are declared here with their logical axes, once, and kept in float32.

`dtype` is what a layer computes in. Kernels keep one axis per meaning ([D, A, K], [t, h, w, C, D]), so that a mesh can
shard heads and a width can be sliced without reshaping what a checkpoint holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax.nn.initializers import Initializer

from vidlang.core.sharding import constrain
from vidlang.ops.widths import prefix

# Matrices inside transformer blocks and heads; biases start at zero.
KERNEL_INIT = nn.initializers.xavier_uniform()
# Patch embedding: unit variance out for unit variance in.
PATCH_INIT = nn.initializers.lecun_normal()
# Standard deviation at the start of tables that are looked up or added: words, positions, the cls token.
TABLE_STD = 0.02
# Axes that a mesh may cut, which a narrow layer uses a part of.
GROUPED = ("heads", "mlp")


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), by which CLIP's released models approximate the GELU."""
    return x * nn.sigmoid(1.702 * x)


# By name: the exact GELU, two approximations that published parameters were trained with, and what others have.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], names: tuple[str, ...]
) -> jax.Array:
    """Declares a float32 parameter of `module` with the logical names of its axes."""
    if module.has_variable("params", name):
        # Linen would trace the initializer once more to learn the shape: a fifth of what tracing a step takes.
        found: Any = nn.unbox(module.get_variable("params", name))
        if jnp.shape(found) != shape:
            raise ScopeParamShapeError(name, "/".join(module.path), jnp.shape(found), shape)
        return found
    boxed: Any = module.param(name, nn.with_logical_partitioning(init, names), shape, jnp.float32)
    return boxed  # Linen has taken it out of its box


def table(
    module: nn.Module, name: str, shape: tuple[int, ...], names: tuple[str, ...], std: float = TABLE_STD
) -> jax.Array:
    """Declares rows to be looked up or added: words, positions, a cls token."""
    return parameter(module, name, nn.initializers.truncated_normal(std), shape, names)


class Linear(nn.Module):
    """A linear map from the last axes of the input to `out` axes.

    `names` are the logical names of the kernel's axes: first those of the input that are summed over, whose sizes are
    `into`, then those of `out`. The input may hold the axes `into` flattened into one.

    A narrower input meets the first entries of the kernel's axes, and `take` asks for as many of the output's: that is
    a layer at another width. Axes of heads and hidden units are cut in each of `groups` parts alike.

    `lora` = (rank, scale) adds scale * up(down(x)), a map of low rank that starts at zero.
    """

    into: tuple[int, ...]
    out: tuple[int, ...]
    names: tuple[str, ...]
    dtype: Any
    bias: bool = True
    kernel_init: Initializer = KERNEL_INIT
    groups: int = 1
    lora: tuple[int, float] = (0, 1.0)

    @nn.compact
    def __call__(self, x: jax.Array, *, take: tuple[int, ...] | None = None) -> jax.Array:
        fan_in, fan_out = math.prod(self.into), math.prod(self.out)

        def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
            # Variances follow the matrix that the kernel is, whatever its axes.
            return self.kernel_init(key, (fan_in, fan_out), dtype).reshape(shape)

        kernel = parameter(self, "kernel", init, self.into + self.out, self.names)
        count, out = len(self.into), take or self.out
        given = x.shape[-count:]
        if count > 1 and given != self.into and x.shape[-1] == fan_in:  # flattened
            kernel, given = kernel.reshape(fan_in, *self.out), (fan_in,)
        kernel = self._cut(kernel, self.names[-kernel.ndim :], given + out)
        axes = tuple(range(x.ndim - len(given), x.ndim)), tuple(range(len(given)))
        y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (axes, ((), ())))
        if self.bias:
            offset = parameter(self, "bias", nn.initializers.zeros, self.out, self.names[count:])
            offset = self._cut(offset, self.names[count:], out).astype(self.dtype)
            y = y + offset.reshape((1,) * (y.ndim - offset.ndim) + offset.shape)
        rank, scale = self.lora
        return y + scale * self._low_rank(x, rank, out) if rank else y

    def _low_rank(self, x: jax.Array, rank: int, out: tuple[int, ...]) -> jax.Array:
        count = len(self.into)
        names = (*self.names[:count], "rank"), ("rank", *self.names[count:])
        how: dict[str, Any] = {"dtype": self.dtype, "bias": False, "groups": self.groups}
        draw, zeros = nn.initializers.he_uniform(), nn.initializers.zeros
        down = Linear(self.into, (rank,), names[0], kernel_init=draw, name="lora_down", **how)
        up = Linear((rank,), self.out, names[1], kernel_init=zeros, name="lora_up", **how)
        return up(down(x), take=out)

    def _cut(self, x: jax.Array, names: tuple[str, ...], sizes: tuple[int, ...]) -> jax.Array:
        """The first entries of each axis; a whole one is left as it is."""
        if x.shape == sizes:
            return x
        if len(sizes) != x.ndim or any(size > whole for size, whole in zip(sizes, x.shape, strict=True)):
            raise ValueError(f"a parameter {names} of shape {x.shape} cannot serve the sizes {sizes}")
        # Cutting an axis that lies on several devices would move its parts between them: it is gathered first, as it
        # would be for any use. Heads and hidden units stay where they are, for each device has its groups of them.
        x = constrain(x, *(name if name in GROUPED else None for name in names))
        for axis, (name, size) in enumerate(zip(names, sizes, strict=True)):
            x = prefix(x, axis, size, self.groups if name in GROUPED else 1)
        return x


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with float32 statistics; returns `dtype`.

    A narrower input meets the first entries of scale and bias. An input that is zero beyond its first `valid` channels,
    a number that need not be known before it runs, is normalised over those, and stays zero beyond.
    """

    width: int
    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, (self.width,), ("norm",))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.width,), ("norm",))
        width = x.shape[-1]
        if width > self.width:
            raise ValueError(f"a norm of {self.width} channels was given {width}")
        leading = (1,) * (x.ndim - 1)
        scale, bias = (leaf[:width].reshape(*leading, width) for leaf in (scale, bias))
        x = x.astype(jnp.float32)
        if valid is None:
            x = x - x.mean(axis=-1, keepdims=True)
            variance = jnp.square(x).mean(axis=-1, keepdims=True)
            return (x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)
        inside = (jnp.arange(width) < valid).reshape(*leading, width)
        x = jnp.where(inside, x - x.sum(axis=-1, keepdims=True) / valid, 0.0)
        variance = jnp.square(x).sum(axis=-1, keepdims=True) / valid
        y = x * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return jnp.where(inside, y, 0.0).astype(self.dtype)


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last axis, in float32; returns `dtype`.

    offset: the factor of each channel is 1 + its scale, which then starts at zero (Gemma).
    """

    width: int
    dtype: Any
    epsilon: float = 1e-6
    offset: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = parameter(self, "scale", init, (self.width,), ("norm",))
        if x.shape[-1] != self.width:
            raise ValueError(f"a norm of {self.width} channels was given {x.shape[-1]}")
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
        factor = (scale + 1.0 if self.offset else scale).reshape((1,) * (x.ndim - 1) + (self.width,))
        return (y * factor).astype(self.dtype)


class LayerScale(nn.Module):
    """A factor for each channel, all of which start at `start` (BEiT); a narrower input meets the first of them."""

    width: int
    start: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.constant(self.start), (self.width,), ("norm",))
        width = x.shape[-1]
        return x * scale[:width].reshape((1,) * (x.ndim - 1) + (width,)).astype(x.dtype)


class Embed(nn.Module):
    """Looks up one row per id; an id outside the table gives NaN, which a training loop stops at, never a wrong row."""

    vocab: int
    width: int
    dtype: Any
    std: float = TABLE_STD

    @nn.compact
    def __call__(self, text_BL: jax.Array) -> jax.Array:
        rows_VD = table(self, "table", (self.vocab, self.width), ("vocab", "embed"), self.std)
        return jnp.take(rows_VD.astype(self.dtype), text_BL, axis=0, mode="fill")
