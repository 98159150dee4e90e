"""Few parameters that adapt a frozen layer to something new: MLP adapters and low-rank updates (LoRA).

Both start as nothing, so a model with them is at first the model without: of the two maps of each, only the second is
zero. (With both at zero, neither would ever get a gradient.) Which parameters train is the optimizer's business:
`optimizer.train_only` with "adapter" or "lora_".
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vidlang.core.sharding import constrain
from vidlang.nn.layers import LayerNorm, Linear


class Adapter(nn.Module):
    """y + up(relu(norm(down(y)))) behind the mlp of a block (LongViViT); a narrower input has a narrower bottleneck."""

    width: int
    bottleneck: int
    dtype: Any

    @nn.compact
    def __call__(self, y_BND: jax.Array) -> jax.Array:
        width = y_BND.shape[-1]
        down = Linear((self.width,), (self.bottleneck,), ("embed", "joint"), self.dtype, name="down")
        h_BNE = down(y_BND, take=(max(1, self.bottleneck * width // self.width),))
        h_BNE = nn.relu(LayerNorm(self.bottleneck, self.dtype, name="norm")(h_BNE))
        zeros = nn.initializers.zeros
        up = Linear((self.bottleneck,), (self.width,), ("joint", "embed"), self.dtype, kernel_init=zeros, name="up")
        return y_BND + constrain(up(h_BNE, take=(width,)), "batch", "tokens", "act_embed")
