"""SigLIP's pool: one vector of all tokens, which attention by a learned query gives and an mlp goes on from."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.nn.layers import ACTIVATIONS, LayerNorm, Linear
from vidlang.nn.layouts import attend_latent
from vidlang.nn.spec import TransformerSpec


class MapPool(nn.Module):
    """y + mlp(norm(y)), where y is what a learned query attends to; float32.

    Heads, mlp and norm are like those of the stack's layers. As there, narrower inputs meet the first channels, heads
    and hidden units, and inputs that are zero beyond `valid` channels give an output that is.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x_BND: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
        spec, dtype, width = self.spec, self.spec.compute_dtype, x_BND.shape[-1]
        y_BD = attend_latent(self, x_BND, spec.width, spec.heads, dtype, spec.groups, valid)
        z_BD = LayerNorm(spec.width, dtype, spec.epsilon, name="norm")(y_BD, valid=valid)
        hidden = spec.mlp * width // spec.width
        grow = Linear((spec.width,), (spec.mlp,), ("embed", "mlp"), dtype, groups=spec.groups, name="mlp_in")
        h_BF = ACTIVATIONS[spec.activation](grow(z_BD, take=(hidden,)))
        if valid is not None:  # hidden units that a layer of that width lacks; of each group the last ones
            unit_F = jnp.arange(hidden) % (hidden // spec.groups)
            h_BF = jnp.where((unit_F < spec.mlp * valid // spec.width // spec.groups)[None], h_BF, 0)
        shrink = Linear((spec.mlp,), (spec.width,), ("mlp", "embed"), dtype, groups=spec.groups, name="mlp_out")
        z_BD = shrink(h_BF, take=(width,))
        if valid is not None:
            z_BD = jnp.where((jnp.arange(width) < valid)[None], z_BD, 0.0)
        return y_BD.astype(jnp.float32) + z_BD.astype(jnp.float32)
