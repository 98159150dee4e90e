"""The temperature of a contrastive model: what cosines are multiplied by, and what is added to them, if anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Temperature:
    """A scale of cosines, 1 / temperature, kept between two bounds.

    init: the first temperature. min_scale, max_scale: bounds of the scale; a temperature in [0.001, 0.5] is a scale in
    [2, 1000]. learnable: whether training moves it. bias: where a learned bias of the logits starts (SigLIP: -10), or
    None for none.
    """

    init: float
    max_scale: float
    learnable: bool
    min_scale: float = 0.0
    bias: float | None = None

    def __post_init__(self) -> None:
        if not (self.init > 0.0 and 0.0 <= self.min_scale <= 1.0 / self.init <= self.max_scale):
            least = f"[{self.min_scale}" if self.min_scale else "(0"
            raise ValueError(
                f"temperature.init is {self.init} and max_scale {self.max_scale}; the first scale, 1 / init, must lie "
                f"in {least}, {self.max_scale}]"
            )

    def declare(self, module: nn.Module) -> tuple[jax.Array, jax.Array | None]:
        """(the scale, the bias), with the parameters "log_scale" and "bias" of `module`, where it has them."""
        log_scale = jnp.float32(-math.log(self.init))
        if self.learnable:
            log_scale = module.param("log_scale", lambda _: jnp.float32(-math.log(self.init)))
        low = math.log(self.min_scale) if self.min_scale else -math.inf
        scale = jnp.exp(clip(log_scale, low, math.log(self.max_scale)))
        start = self.bias
        return scale, None if start is None else module.param("bias", lambda _: jnp.float32(start))


@jax.custom_vjp
def clip(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """x between two bounds, whose gradient, at a bound and beyond, passes only when descent would bring x back.

    A plain clip has no gradient out there: one step too far and the scale would never move again. Passing every
    gradient would let x drift away from the bound for as long as the loss asks for more.
    """
    return jnp.clip(x, low, high)


def _clip_forward(x: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.clip(x, low, high), (x <= low, x >= high)


def _clip_backward(beyond: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    below, above = beyond
    outward = (above & (gradient < 0)) | (below & (gradient > 0))
    return jnp.where(outward, 0.0, gradient), None, None


clip.defvjp(_clip_forward, _clip_backward)
