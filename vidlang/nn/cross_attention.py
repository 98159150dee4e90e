"""Fusion of two modalities: a text reads a video, layer by layer, while the video's tokens stay as they are.

A fusion layer is a transformer block with an attention in between: over the text itself, from the text to the video,
then the mlp. Its parameters are those of a block, under the same names, and the cross-attention's beside them. The L
layers are one stacked tree [L, ...] that is scanned, as in `transformer.Stack`.

The dial keep_text prunes by text (SViTT): after the cross-attention of a layer, only those video tokens that the text's
first token attends to most are there for later layers. There one loop ends, and the next begins with fewer tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.layers import LayerNorm, Linear
from vidlang.nn.layouts import MLP, SPACE
from vidlang.nn.segments import Segment, checkpointed, plan
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.transformer import Block, declare_layers
from vidlang.ops.attention import attend, cls_scores
from vidlang.ops.pruning import keep_best, kept_count

# The parameters of a fusion layer that a block has not.
CROSS = "cross_attention"


def fusion_spec(
    text: TransformerSpec,
    *,
    layers: int,
    heads: int | None = None,
    mlp: int | None = None,
    remat: str | None = None,
    scan: bool | None = None,
    attention: str | None = None,
    causal: bool = False,
) -> TransformerSpec:
    """Layers like those of a text encoder but for what is named here; text tokens see all others unless `causal`."""
    own: dict[str, Any] = {"heads": heads, "mlp": mlp, "remat": remat, "scan": scan, "attention": attention}
    own = {name: value for name, value in own.items() if value is not None}
    return dataclasses.replace(text, layers=layers, causal=causal, frozen_layers=0, drop_path=0.0, **own)


@flax.struct.dataclass
class Fused:
    """Text tokens that have read a video.

    kept_BM: which video tokens the text left, numbered from the first that is not global; None where none was pruned.
    """

    x_BLD: jax.Array
    kept_BM: jax.Array | None = None


class CrossAttention(nn.Module):
    """Every text token attends to every token of a video, whose width may be another than the text's.

    Query, key and value kernels are [D, A, K] and the output's [A, K, D]; those of keys and values begin with the
    video's width, and narrower video tokens meet the first of these channels.
    """

    width: int
    video_width: int
    heads: int
    dtype: Any
    implementation: str
    lora: tuple[int, float] = (0, 1.0)

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, tokens_BND: jax.Array, *, globals: int = 0, score: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """(what the text got, how much its first token attends to the video tokens after the globals, where asked)."""
        split = (self.heads, self.width // self.heads)

        def project(name: str, width: int, x: jax.Array) -> jax.Array:
            names = ("embed", "heads", "head_dim")
            return Linear((width,), split, names, self.dtype, lora=self.lora, name=name)(x)

        q_BLAK = constrain(project("query", self.width, x_BLD), "batch", "tokens", "act_heads", None)
        k_BNAK = constrain(project("key", self.video_width, tokens_BND), "batch", None, "act_heads", None)
        v_BNAK = constrain(project("value", self.video_width, tokens_BND), "batch", None, "act_heads", None)
        o_BLAK = attend(q_BLAK, k_BNAK, v_BNAK, implementation=self.implementation)
        score_BN = None
        if score:
            # Ranks tokens only: no gradient passes through a choice.
            score_BN = cls_scores(*jax.lax.stop_gradient((q_BLAK[:, 0], k_BNAK)))[:, globals:]
        o_BLAK = constrain(o_BLAK, "batch", "tokens", "act_heads", None)
        names = ("heads", "head_dim", "embed")
        out = Linear(split, (self.width,), names, self.dtype, lora=self.lora, name="out")
        return constrain(out(o_BLAK), "batch", "tokens", "act_embed"), score_BN


class FusionBlock(Block):
    """A block with one more branch, the cross-attention, between its attention and its mlp."""

    video_width: int

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        x_BLD: jax.Array,
        mask_BANS: jax.Array | None = None,
        *,
        tokens_BND: jax.Array,
        globals: int = 0,
        score: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(text tokens, how much the first of them attends to each video token, where asked)."""
        spec = self.spec
        y_BLD, _ = self._attend(SPACE, x_BLD, mask_BANS)
        x_BLD = self._join(SPACE, x_BLD, self._branch(SPACE, y_BLD, None))
        how = spec.width, self.video_width, spec.heads, spec.compute_dtype, spec.attention, spec.lora
        cross = CrossAttention(*how, name=CROSS)
        y_BLD, score_BN = cross(self._enter(CROSS, x_BLD), tokens_BND, globals=globals, score=score)
        x_BLD = self._join(CROSS, x_BLD, self._branch(CROSS, y_BLD, None))
        return self._join(MLP, x_BLD, self._branch(MLP, self._mlp(x_BLD), None)), score_BN


class Fusion(nn.Module):
    """L fusion layers after one another and, where norms come first, one more norm."""

    spec: TransformerSpec
    video_width: int

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        valid_BL: jax.Array,
        tokens_BND: jax.Array,
        *,
        keep: tuple[tuple[int, float], ...] = (),
        globals: int = 0,
    ) -> Fused:
        """`valid_BL`: which text tokens are no padding. keep: the dial keep_text; `globals` tokens in front stay."""
        spec = self.spec
        if x_BLD.shape[-1] != spec.width or tokens_BND.shape[-1] > self.video_width:
            raise ValueError(
                f"fusion of texts {x_BLD.shape} and video tokens {tokens_BND.shape}; expected the widths {spec.width} "
                f"and {self.video_width}"
            )
        segments = _segments(spec, keep)
        # No parent: a block is a pure function of its slice of the parameters, not a submodule.
        block = FusionBlock(spec, self.video_width, parent=None)
        params = declare_layers(self, "layers", block, x_BLD.shape, {"tokens_BND": tokens_BND})
        x_BLD, kept_BM = x_BLD.astype(spec.compute_dtype), None
        for segment in segments:
            rows = jax.tree.map(lambda leaf, segment=segment: leaf[segment.start : segment.stop], params)
            x_BLD, score_BN = _run(block, rows, x_BLD, valid_BL[:, None, None, :], tokens_BND, segment, globals)
            if segment.keep is not None:
                count = kept_count(score_BN.shape[1], segment.keep)
                tokens_BND, best_BM = keep_best(tokens_BND, score_BN, count, globals=globals)
                kept_BM = best_BM if kept_BM is None else jnp.take_along_axis(kept_BM, best_BM, axis=1)
        if spec.norm == "pre":
            x_BLD = LayerNorm(spec.width, spec.compute_dtype, spec.epsilon, name="norm")(x_BLD)
        return Fused(x_BLD, kept_BM)


def _segments(spec: TransformerSpec, keep: tuple[tuple[int, float], ...]) -> list[Segment]:
    """The loops that the dial cuts the layers into; keeping everything cuts nothing."""
    for layer, _ in keep:
        if layer >= spec.layers:
            raise ValueError(
                f"the dial keep_text prunes after layer {layer}; the fusion layers are 0 to {spec.layers - 1}"
            )
    return plan(spec, (spec.width,) * spec.layers, tuple(pair for pair in keep if pair[1] < 1.0))


def _run(
    block: FusionBlock,
    params: Any,
    x_BLD: jax.Array,
    mask_BANS: jax.Array,
    tokens_BND: jax.Array,
    segment: Segment,
    globals: int,
) -> tuple[jax.Array, Any]:
    """(text tokens, scores of the video tokens in the last layer, where the segment ends with a pruning)."""
    spec, prunes = block.spec, segment.keep is not None
    batch, tokens = tokens_BND.shape[0], tokens_BND.shape[1] - globals
    carry = x_BLD, jnp.zeros((batch, tokens), jnp.float32) if prunes else None

    def layer(carry: Any, params: Any) -> Any:
        found: Any = block.apply(
            {"params": params}, carry[0], mask_BANS, tokens_BND=tokens_BND, globals=globals, score=prunes
        )
        return found

    step: Any = checkpointed(layer, spec)
    if spec.scan:
        return jax.lax.scan(lambda carry, params: (step(carry, params), None), carry, params)[0]
    for i in range(segment.stop - segment.start):
        carry = step(carry, jax.tree.map(lambda leaf, i=i: leaf[i], params))
    return carry
