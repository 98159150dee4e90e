"""One layer of a language model: attention to the tokens before, then an mlp, over a whole text or one more token.

A layer is a pure function of its slice of the stacked parameters, as a block of `nn.transformer` is.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.sharding import active_mesh, batch_ways, constrain
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.layers import ACTIVATIONS, LayerNorm, Linear, RMSNorm
from vidlang.ops.attention import attend
from vidlang.ops.cached_attention import attend_to_cache, capped_attention, causal_mask
from vidlang.ops.rotary import angles, rotate, speeds

# The small random numbers that language models start from.
INIT = nn.initializers.normal(0.02)
KeyValue = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class Past:
    """What a layer keeps of the tokens so far: keys and values [B, S, G, K]; seen_BS: which places hold one.

    local_BS: which of them a layer sees that sees a window only; None where no layer does.
    """

    key_value: KeyValue
    seen_BS: jax.Array
    local_BS: jax.Array | None = None


def norm(spec: DecoderSpec, name: str | None = None, width: int = 0, *, dtype: Any = None) -> LayerNorm | RMSNorm:
    """A norm of the kind that the model has."""
    dtype = spec.compute_dtype if dtype is None else dtype
    if spec.norm == "layer":
        return LayerNorm(width or spec.width, dtype, spec.epsilon, name=name)
    return RMSNorm(width or spec.width, dtype, spec.epsilon, spec.norm_offset, name=name)


def few_rows() -> int:
    """As few rows as divide over the devices: for inits, of which only the parameters are wanted."""
    mesh = active_mesh()
    return 1 if mesh is None else batch_ways(mesh)


class DecoderAttention(nn.Module):
    """Attention of each token to itself and those before it.

    Kernels are [D, A, K] of queries, [D, G, K] of keys and values, and [A, K, D] of the output.
    """

    spec: DecoderSpec

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, places_BL: jax.Array, local: jax.Array, past: Past | None
    ) -> tuple[jax.Array, KeyValue]:
        """(what the tokens got, their keys and values). With `past`, there is one token a row, and it sees that too."""
        spec = self.spec
        q_BLAK = self._project("query", spec.heads, x_BLD)
        k_BLGK = self._project("key", spec.kv_heads, x_BLD)
        v_BLGK = self._project("value", spec.kv_heads, x_BLD)
        if spec.qk_norm:
            q_BLAK = norm(spec, "query_norm", spec.head_size)(q_BLAK)
            k_BLGK = norm(spec, "key_norm", spec.head_size)(k_BLGK)
        if spec.positions == "rotary":
            angle = angles(places_BL, self._speeds(local))
            q_BLAK, k_BLGK = rotate(q_BLAK, angle), rotate(k_BLGK, angle)
        if spec.query_scale:  # attention itself divides by the root of the head size
            q_BLAK = q_BLAK * jnp.asarray(spec.query_scale * spec.head_size**0.5, q_BLAK.dtype)
        if past is None:
            o_BLAK = self._whole(q_BLAK, k_BLGK, v_BLGK, local)
        else:
            seen_BS = past.seen_BS if past.local_BS is None else jnp.where(local, past.local_BS, past.seen_BS)
            new = k_BLGK[:, 0], v_BLGK[:, 0]
            o_BLAK = attend_to_cache(q_BLAK[:, 0], new, past.key_value, seen_BS, spec.attention_cap)[:, None]
        o_BLAK = constrain(o_BLAK, "batch", None, "act_heads", None)
        split, names = (spec.heads, spec.head_size), ("heads", "head_dim", "embed")
        out = Linear(split, (spec.width,), names, spec.compute_dtype, spec.out_bias, INIT, name="out")
        return constrain(out(o_BLAK), "batch", None, "act_embed"), (k_BLGK, v_BLGK)

    def _project(self, name: str, heads: int, x_BLD: jax.Array) -> jax.Array:
        spec, names = self.spec, ("embed", "heads", "head_dim")
        split = heads, spec.head_size
        linear = Linear((spec.width,), split, names, spec.compute_dtype, spec.qkv_bias, INIT, name=name)
        return constrain(linear(x_BLD), "batch", None, "act_heads", None)

    def _speeds(self, local: jax.Array) -> jax.Array:
        spec = self.spec
        far_K = speeds(spec.head_size, spec.rotary_base, spec.rotary_scaling)
        if not (spec.window and spec.local_base):
            return jnp.asarray(far_K, jnp.float32)
        return jnp.where(local, speeds(spec.head_size, spec.local_base), far_K).astype(jnp.float32)

    def _whole(self, q_BLAK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array, local: jax.Array) -> jax.Array:
        """Over a whole text. Padding comes last, where no token looks, so that it needs no mask."""
        spec, tokens = self.spec, q_BLAK.shape[1]
        shared = spec.heads // spec.kv_heads
        k_BLAK, v_BLAK = (jnp.repeat(x, shared, axis=2) if shared > 1 else x for x in (k_BLGK, v_BLGK))
        if spec.attention_cap or spec.window:
            mask_11NN = causal_mask(tokens, jnp.where(local, spec.window, 0) if spec.window else 0)
            if spec.attention_cap:
                return capped_attention(q_BLAK, k_BLAK, v_BLAK, mask_11NN, spec.attention_cap)
            return attend(q_BLAK, k_BLAK, v_BLAK, mask_BANS=mask_11NN, implementation=spec.attention)
        return attend(q_BLAK, k_BLAK, v_BLAK, causal=True, implementation=spec.attention)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    spec: DecoderSpec

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, places_BL: jax.Array, local: jax.Array, past: Past | None = None
    ) -> tuple[jax.Array, KeyValue]:
        """(tokens, their keys and values). local: whether they see a window only, a scalar."""
        spec = self.spec
        y_BLD = norm(spec, "attention_norm")(x_BLD)
        y_BLD, key_value = DecoderAttention(spec, name="attention")(y_BLD, places_BL, local, past)
        x_BLD = x_BLD + (norm(spec, "attention_post_norm")(y_BLD) if spec.post_norms else y_BLD)
        y_BLD = mlp(spec, norm(spec, "mlp_norm")(x_BLD))
        return x_BLD + (norm(spec, "mlp_post_norm")(y_BLD) if spec.post_norms else y_BLD), key_value


def mlp(spec: DecoderSpec, x_BLD: jax.Array) -> jax.Array:
    """The two or three linear maps of a layer, declared in the module that calls this."""
    dtype, act = spec.compute_dtype, ACTIVATIONS[spec.activation]
    names = ("embed", "mlp")
    h_BLF = Linear((spec.width,), (spec.mlp,), names, dtype, spec.mlp_bias, INIT, name="mlp_in")(x_BLD)
    if spec.gated:
        gate = Linear((spec.width,), (spec.mlp,), names, dtype, spec.mlp_bias, INIT, name="mlp_gate")
        h_BLF = act(gate(x_BLD)) * h_BLF
    else:
        h_BLF = act(h_BLF)
    h_BLF = constrain(h_BLF, "batch", None, "act_mlp")
    out = Linear((spec.mlp,), (spec.width,), ("mlp", "embed"), dtype, spec.mlp_bias, INIT, name="mlp_out")
    return constrain(out(h_BLF), "batch", None, "act_embed")
