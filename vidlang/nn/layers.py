"""Linear, LayerNorm and Embed: parameters are declared here with their logical axes, once, and kept in float32.

`dtype` is what a layer computes in. Kernels keep one axis per meaning ([D, A, K], [t, h, w, C, D]), so that a mesh can
shard heads and a width can be sliced without reshaping what a checkpoint holds.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

# Matrices inside transformer blocks and heads; biases start at zero.
KERNEL_INIT = nn.initializers.xavier_uniform()
# Patch embedding: unit variance out for unit variance in.
PATCH_INIT = nn.initializers.lecun_normal()
# Standard deviation at the start of tables that are looked up or added: words, positions, the cls token.
TABLE_STD = 0.02


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], names: tuple[str, ...]
) -> jax.Array:
    """Declares a float32 parameter of `module` with the logical names of its axes."""
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
    """

    into: tuple[int, ...]
    out: tuple[int, ...]
    names: tuple[str, ...]
    dtype: Any
    bias: bool = True
    kernel_init: Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in, fan_out = math.prod(self.into), math.prod(self.out)

        def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
            # Variances follow the matrix that the kernel is, whatever its axes.
            return self.kernel_init(key, (fan_in, fan_out), dtype).reshape(shape)

        kernel = parameter(self, "kernel", init, self.into + self.out, self.names)
        if x.shape[-len(self.into) :] != self.into:
            kernel = kernel.reshape(fan_in, *self.out)
        summed = kernel.ndim - len(self.out)
        axes = tuple(range(x.ndim - summed, x.ndim)), tuple(range(summed))
        y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (axes, ((), ())))
        if self.bias:
            names = self.names[len(self.into) :]
            offset = parameter(self, "bias", nn.initializers.zeros, self.out, names).astype(self.dtype)
            y = y + offset.reshape((1,) * (y.ndim - offset.ndim) + offset.shape)
        return y


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with float32 statistics; returns `dtype`."""

    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (width,), ("norm",))
        bias = parameter(self, "bias", nn.initializers.zeros, (width,), ("norm",))
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(x).mean(axis=-1, keepdims=True)
        leading = (1,) * (x.ndim - 1)
        y = x * jax.lax.rsqrt(variance + self.epsilon) * scale.reshape(*leading, width)
        return (y + bias.reshape(*leading, width)).astype(self.dtype)


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
