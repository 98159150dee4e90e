"""A language model: each token guesses the next one, over whole texts or one token after another with a cache.

The L layers are one stacked tree [L, ...] that is scanned. Before every k-th of them there may be a gated
cross-attention to a video (`nn.gated_cross`); its parameters are a tree of their own [L/k, ...], so that the language
model's are the same with and without, and can be frozen as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.decoder_block import INIT, DecoderBlock, KeyValue, Past, few_rows, norm
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.gated_cross import GatedCross
from vidlang.nn.layers import TABLE_STD, Embed, Linear, table
from vidlang.nn.segments import checkpointed
from vidlang.nn.transformer import declare_layers
from vidlang.ops.cached_attention import cap


@dataclass(frozen=True)
class Cross:
    """The layers that look at a video: their block, its parameters [L/k, ...], and either of
    visual_BQD, what they look at, or key_value, what they made of that before, [L/k, B, Q, A, K]."""

    block: GatedCross
    params: Any
    visual_BQD: jax.Array | None = None
    key_value: KeyValue | None = None


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens so far, [L, B, S, G, K]; row b has used_B[b] of them, in its first places."""

    key_value: KeyValue
    used_B: jax.Array


class Decoder(nn.Module):
    """Word table, layers, norm and head of a language model."""

    spec: DecoderSpec

    def setup(self) -> None:
        spec = self.spec
        self.words = Embed(spec.vocab, spec.width, spec.compute_dtype)
        if spec.positions == "learned":
            self.positions = table(self, "positions", (spec.max_length, spec.width), ("position", "embed"), TABLE_STD)
        options = {"places_BL": jnp.zeros((1, 1), jnp.int32), "local": jnp.zeros((), bool)}
        # No parent: a block is a pure function of its slice of the parameters, not a submodule.
        self.block = DecoderBlock(spec, parent=None)
        self.layers = declare_layers(self, "layers", self.block, (few_rows(), 1, spec.width), options)
        self.norm = norm(spec)
        if not spec.tied:
            names = ("embed", "vocab")
            self.head = Linear((spec.width,), (spec.vocab,), names, spec.compute_dtype, False, INIT)

    def __call__(self, text_BL: jax.Array, cross: Cross | None = None) -> jax.Array:
        """Logits [B, L, V] of what follows each token, float32."""
        x_BLD, _, _ = self._run(text_BL, self._places(text_BL), None, cross)
        return self._logits(x_BLD)

    def start(
        self, text_BL: jax.Array, length_B: jax.Array, room: int, cross: Cross | None = None
    ) -> tuple[jax.Array, Cache, KeyValue | None]:
        """(logits [B, V] of what follows each row's first length_B tokens, the cache, what `cross` made of the video).

        The cache has places for `room` more tokens.
        """
        if text_BL.shape[1] + room > self.spec.max_length:
            raise ValueError(
                f"a prompt of {text_BL.shape[1]} tokens and {room} new ones do not fit into the {self.spec.max_length} "
                "of this language model (max_length); shorten the prompt or ask for fewer"
            )
        x_BLD, (k_LBSGK, v_LBSGK), seen = self._run(text_BL, self._places(text_BL), None, cross)
        last_BD = jnp.take_along_axis(x_BLD, (length_B - 1)[:, None, None], axis=1)
        wide = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
        cached = _on_devices((jnp.pad(k_LBSGK, wide), jnp.pad(v_LBSGK, wide)))
        return self._logits(last_BD)[:, 0], Cache(cached, length_B.astype(jnp.int32)), seen

    def advance(self, token_B: jax.Array, cache: Cache, cross: Cross | None = None) -> tuple[jax.Array, Cache]:
        """(logits [B, V] of what follows these tokens, the cache with them)."""
        x_B1D, (k_LB1GK, v_LB1GK), _ = self._run(token_B[:, None], cache.used_B[:, None], cache, cross)

        def written(old_LBSGK: jax.Array, new_LB1GK: jax.Array) -> jax.Array:
            rows_B = jnp.arange(token_B.shape[0])
            return old_LBSGK.at[:, rows_B, cache.used_B].set(new_LB1GK[:, :, 0], mode="drop")

        (k_LBSGK, v_LBSGK) = cache.key_value
        cached = _on_devices((written(k_LBSGK, k_LB1GK), written(v_LBSGK, v_LB1GK)))
        return self._logits(x_B1D)[:, 0], Cache(cached, cache.used_B + 1)

    def _places(self, text_BL: jax.Array) -> jax.Array:
        length = text_BL.shape[1]
        if length > self.spec.max_length:
            raise ValueError(
                f"a text of {length} tokens is longer than the {self.spec.max_length} of this language model "
                "(max_length); set clip.text_length to that or less"
            )
        return jnp.broadcast_to(jnp.arange(length), (1, length))

    def _run(
        self, text_BL: jax.Array, places_BL: jax.Array, cache: Cache | None, cross: Cross | None
    ) -> tuple[jax.Array, KeyValue, KeyValue | None]:
        """(tokens after the last norm, keys and values of all layers, those of the video)."""
        spec = self.spec
        x_BLD = self.words(text_BL)
        if spec.embed_scale != 1.0:
            x_BLD = x_BLD * jnp.asarray(spec.embed_scale, x_BLD.dtype)
        if spec.positions == "learned":
            x_BLD = x_BLD + jnp.take(self.positions, places_BL, axis=0, mode="clip").astype(x_BLD.dtype)
        x_BLD = constrain(x_BLD, "batch", None, "act_embed")
        x_BLD, own, seen = run_layers(self.block, self.layers, x_BLD, places_BL, cache, cross)
        return self.norm(x_BLD), own, seen

    def _logits(self, x_BLD: jax.Array) -> jax.Array:
        spec = self.spec
        if spec.tied:
            rows_VD: jax.Array = nn.unbox(self.words.get_variable("params", "table")).astype(spec.compute_dtype)
            logits_BLV = jnp.einsum("BLD,VD->BLV", x_BLD, rows_VD, preferred_element_type=jnp.float32)
        else:
            logits_BLV = self.head(x_BLD).astype(jnp.float32)
        return constrain(cap(logits_BLV, spec.logit_cap), "batch", None, "vocab")


def run_layers(
    block: DecoderBlock, params: Any, x_BLD: jax.Array, places_BL: jax.Array, cache: Cache | None, cross: Cross | None
) -> tuple[jax.Array, KeyValue, KeyValue | None]:
    """(tokens, keys and values [L, B, L, G, K] of the layers, those [L/k, B, Q, A, K] of the cross-attentions)."""
    spec, past = block.spec, None
    local_L = jnp.asarray([spec.is_local(layer) for layer in range(spec.layers)])
    if cache is not None:
        past = Past(cache.key_value, *_seen(spec, cache))

    def layer(x_BLD: jax.Array, xs: Any) -> Any:
        params, local, own = xs
        here = None if past is None else past.replace(key_value=own)  # type: ignore[attr-defined]
        return block.apply({"params": params}, x_BLD, places_BL, local, here)

    layer_xs = params, local_L, None if past is None else past.key_value
    if cross is None:
        x_BLD, own = _loop(checkpointed(layer, spec), x_BLD, layer_xs, spec.scan)
        return x_BLD, own, None

    def looking(x_BLD: jax.Array, xs: Any) -> Any:
        params, known = xs
        return cross.block.apply({"params": params}, x_BLD, cross.visual_BQD, known)

    def group(x_BLD: jax.Array, xs: Any) -> Any:
        cross_xs, layer_xs = xs
        x_BLD, seen = checkpointed(looking, spec)(x_BLD, cross_xs)
        x_BLD, own = _loop(checkpointed(layer, spec), x_BLD, layer_xs, spec.scan)
        return x_BLD, (seen, own)

    every = cross.block.every
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, every, *leaf.shape[1:]), layer_xs)
    x_BLD, (seen, own) = _loop(group, x_BLD, ((cross.params, cross.key_value), split), spec.scan)
    return x_BLD, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), own), seen


def _loop(step: Callable[[Any, Any], Any], carry: Any, xs: Any, scan: bool) -> tuple[Any, Any]:
    """lax.scan, or the same without a loop."""
    if scan:
        return jax.lax.scan(step, carry, xs)
    found = []
    for i in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, ys = step(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        found.append(ys)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def _seen(spec: DecoderSpec, cache: Cache) -> tuple[jax.Array, jax.Array | None]:
    """Which places of the cache hold a token, and which of these a window from the next token reaches."""
    place_1S, used_B1 = jnp.arange(cache.key_value[0].shape[2])[None], cache.used_B[:, None]
    seen_BS = place_1S < used_B1
    return seen_BS, seen_BS & (place_1S > used_B1 - spec.window) if spec.window else None


def _on_devices(key_value: KeyValue) -> KeyValue:
    k_LBSGK, v_LBSGK = (constrain(x, None, "batch", None, "act_heads", None) for x in key_value)
    return k_LBSGK, v_LBSGK
