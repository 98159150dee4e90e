"""The video encoder: tubelets of a clip become tokens, and one transformer attends over all of space and time.

Order of things: pixels are normalised on the device, each tubelet is embedded linearly, positions are added, the mask
dial drops tokens, and only then does a cls token (if that is how the model pools) join in front: it is never masked. In
the stack, layers run at the width that the dial says, attend along the edges that are drawn, and hand on what is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.nn.layers import PATCH_INIT, TABLE_STD, LayerNorm, Linear, table
from vidlang.nn.transformer import Stack, TransformerSpec
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.masking import keep, keep_count
from vidlang.ops.pixels import normalize
from vidlang.ops.tubelets import Size3, patchify, space_time, token_grid

POOLS = ("mean", "cls")


@flax.struct.dataclass
class Output:
    """Tokens after the last norm (without cls), the clip's one vector in float32, and which tokens these are.

    Static widths give tokens and vector of the last layer's width, drawn ones the full width with zeros beyond the
    first `valid` channels.
    """

    tokens_BMD: jax.Array
    pooled_BD: jax.Array
    kept_BM: jax.Array
    valid: jax.Array | None = None


class Model(nn.Module):
    """Joint space-time encoder.

    transformer: the keys of TransformerSpec. tubelet: frames, height and width of a token. pool: "mean" of the tokens
    or a "cls" token. mean, std: of pixels in 0..1, one number or one per channel. position_std: how large positions
    start; beside patches of order 1, the usual small ones are noticed late, which only long training forgives. How
    many positions there are follows from the clip that the parameters were initialised with.
    """

    transformer: Mapping[str, Any]
    tubelet: Size3 = (2, 16, 16)
    pool: str = "mean"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    position_std: float = TABLE_STD

    inputs: ClassVar[tuple[str, ...]] = ("video_BTHWC",)

    @property
    def video_spec(self) -> TransformerSpec:
        """The stack that the dials act on."""
        return call(TransformerSpec, self.transformer, what="video.transformer")

    @property
    def frozen(self) -> dict[str, int | None]:
        """Paths of what gets no gradient, and how many of its first rows (None: all of it)."""
        layers = self.video_spec.frozen_layers
        if not layers:
            return {}
        before = ["patch", "temporal", "spatial", *(["cls"] if self.pool == "cls" else [])]
        return {f"^({'|'.join(before)})(/|$)": None, "^stack/layers/": layers}

    def at(self, widths: Any) -> Model:
        """The smaller model that this one is at these widths; `nn.slicing` cuts its parameters out."""
        return self.clone(transformer=dataclasses.asdict(self.video_spec.cut(widths)))

    def setup(self) -> None:
        spec = self.video_spec
        if self.pool not in POOLS:
            raise ValueError(f"video.pool is {self.pool!r}; it is one of {', '.join(POOLS)}")
        if spec.causal:
            raise ValueError("video.transformer.causal is True; the video encoder attends in both directions")
        if len(self.tubelet) != 3:
            raise ValueError(f"video.tubelet is {self.tubelet}; give (frames, height, width)")
        self.spec = spec
        self.stack = Stack(spec)
        self.norm = LayerNorm(spec.width, spec.compute_dtype)

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        has_cls = self.pool == "cls"
        if dials.keep and not has_cls:
            raise ValueError(
                f"the dial keep ranks tokens by what the cls token attends to, and this model pools by {self.pool!r}; "
                "set video.pool='cls', or leave keep off"
            )
        x_BND, grid = self._embed(video_BTHWC)
        x_BMD, kept_BM = self._drop(x_BND, grid, dials)
        if has_cls:
            cls_D = table(self, "cls", (self.spec.width,), ("embed",))
            cls_B1D = jnp.broadcast_to(cls_D.astype(x_BMD.dtype), (x_BMD.shape[0], 1, self.spec.width))
            x_BMD = jnp.concatenate([cls_B1D, x_BMD], axis=1)
        x_BMD = constrain(x_BMD, "batch", "tokens", "act_embed")
        stacked = self.stack(x_BMD, dials=dials, globals=int(has_cls), train=train)
        x_BMD = self.norm(stacked.x_BMD, valid=stacked.valid)
        if stacked.kept_BM is not None:
            kept_BM = jnp.take_along_axis(kept_BM, stacked.kept_BM, axis=1)
        if has_cls:
            pooled_BD, tokens_BMD = x_BMD[:, 0].astype(jnp.float32), x_BMD[:, 1:]
        else:
            pooled_BD, tokens_BMD = x_BMD.astype(jnp.float32).mean(axis=1), x_BMD
        return Output(tokens_BMD, constrain(pooled_BD, "batch", "act_embed"), kept_BM, stacked.valid)

    def _embed(self, video_BTHWC: jax.Array) -> tuple[jax.Array, Size3]:
        """(one embedded token with its position for every tubelet, how many there are along each axis)."""
        if video_BTHWC.ndim != 5:
            raise ValueError(f"a video batch is [B, T, H, W, C]; found shape {video_BTHWC.shape}")
        _, frames, height, width, channels = video_BTHWC.shape
        grid = token_grid((frames, height, width), self.tubelet)
        dtype = self.spec.compute_dtype
        temporal_TD = self._positions("temporal", grid[0], f"{frames} frames")
        spatial_ND = self._positions("spatial", grid[1] * grid[2], f"{height}x{width} pixels")
        pixels_BTHWC = normalize(video_BTHWC, mean=self.mean, std=self.std, dtype=dtype)
        # The kernel is that of a 3-D convolution, so image weights can be inflated along its first axis.
        patch_axes = (*self.tubelet, channels)
        names = ("patch",) * 4 + ("embed",)
        embed = Linear(patch_axes, (self.spec.width,), names, dtype, kernel_init=PATCH_INIT, name="patch")
        x_BND = embed(patchify(pixels_BTHWC, self.tubelet))
        return x_BND + space_time(temporal_TD, spatial_ND).astype(dtype)[None], grid

    def _positions(self, name: str, count: int, found: str) -> jax.Array:
        """The table of `count` positions; a clip of another size than the parameters' is an error."""
        if self.has_variable("params", name):
            known: Any = nn.unbox(self.get_variable("params", name))
            size = known.shape[0]
            if size != count:
                raise ValueError(
                    f"a clip of {found} needs {count} {name} positions with tubelets of {self.tubelet}; these "
                    f"parameters have {size}. Give clips of the size they were trained on"
                )
        return table(self, name, (count, self.spec.width), ("position", "embed"), self.position_std)

    def _drop(self, x_BND: jax.Array, grid: Size3, dials: Dials) -> tuple[jax.Array, jax.Array]:
        """The tokens that the mask dial leaves, and their indices."""
        batch, total, _ = x_BND.shape
        if dials.mask == 0 or (dials.mask_kind == "random" and keep_count(total, dials.mask) == total):
            return x_BND, jnp.broadcast_to(jnp.arange(total), (batch, total))
        if not self.has_rng("mask"):
            raise ValueError(f"the dial mask is {dials.mask}, which draws tokens: call with rngs={{'mask': key}}")
        return keep(self.make_rng("mask"), x_BND, grid, dials.mask, dials.mask_kind)
