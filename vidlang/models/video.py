"""The video encoder: tubelets of a clip become tokens, and one transformer attends over space and time.

Order of things: pixels are normalised on the device, each tubelet is embedded linearly, positions are added, the mask
dial drops tokens, and only then does a cls token (if that is how the model pools) join in front: it is never masked. In
the stack, layers run at the width that the dial says, attend along the edges that are drawn, and hand on what is kept.
Where the layout is "frames", all of this happens to each frame as if it were a clip, and their vectors are pooled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import constrain
from vidlang.nn import layouts
from vidlang.nn.attention import Places
from vidlang.nn.layers import TABLE_STD, LayerNorm, table
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.stems import INFLATE, ImageStem, TubeletStem, View, ViewStem
from vidlang.nn.transformer import Stack
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.masking import keep, keep_count
from vidlang.ops.pixels import normalize
from vidlang.ops.positions import TIME, Size2, sincos_1d, sincos_3d
from vidlang.ops.tubelets import Size3, space_time, token_grid

POOLS = ("mean", "cls")
POSITIONS = ("learned", "none", "sincos")


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
    """Space-time encoder.

    transformer: the keys of TransformerSpec, the layout among them. tubelet: frames, height and width of a token. pool:
    "mean" of the tokens or a "cls" token. mean, std: of pixels in 0..1, one number or one per channel. position_std:
    how large positions start; beside patches of order 1, the usual small ones are noticed late, which only long
    training forgives. How many positions there are follows from the clip that the parameters were initialised with.

    image_patch: (height, width) of a second stem's patches, for clips of one frame, which get no position in time.
    views: sections of `stems.View` whose tubes are the tokens, instead of tubelets (TubeViT). positions: "learned",
    "none", or fixed ones ("sincos": VideoMAE's for tubelets, TubeViT's for views). pool_frames: in the layout "frames",
    how their vectors become one: "mean" or "attention". What parameters of another stage become here:
    extend_positions, one of `positions.TIME`, and inflate, how a video stem starts from an image stem's kernel.
    """

    transformer: Mapping[str, Any]
    tubelet: Size3 = (2, 16, 16)
    pool: str = "mean"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    position_std: float = TABLE_STD
    image_patch: Size2 | None = None
    views: Sequence[Mapping[str, Any]] = ()
    positions: str = "learned"
    pool_frames: str = "mean"
    extend_positions: str = "repeat"
    inflate: str = "mean"

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
        before = ["patch", "image_patch", "views", "temporal", "spatial", *(["cls"] if self.pool == "cls" else [])]
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
        self.spec, self.by_frame = spec, spec.layout == "frames"
        self._check_settings()
        self.tubes = tuple(call(View, view, what=f"video.views[{i}]") for i, view in enumerate(self.views))
        self.stack = Stack(spec)
        self.norm = LayerNorm(spec.width, spec.compute_dtype)
        if self.pool_frames == "attention":
            self.frame_pool = layouts.AttentionPool(spec.width, spec.heads, spec.compute_dtype, spec.groups)

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array, *, train: bool, dials: Dials = OFF) -> Output:
        has_cls = self.pool == "cls"
        if dials.keep and not has_cls:
            raise ValueError(
                f"the dial keep ranks tokens by what the cls token attends to, and this model pools by {self.pool!r}; "
                "set video.pool='cls', or leave keep off"
            )
        layouts.check_dials(self.spec.layout, dials)
        x_BND, grid = self._embed(video_BTHWC)
        total = x_BND.shape[1]
        x_BMD, kept_BM = self._drop(x_BND, grid, dials)
        batch, frames = x_BMD.shape[0], 1 if grid is None else grid[0]
        places_BM, times = kept_BM if x_BMD.shape[1] < total else kept_BM[:1], frames
        if self.by_frame:  # from here on, frames are the batch
            x_BMD = x_BMD.reshape(batch * frames, -1, self.spec.width)
            places_BM, times = places_BM.reshape(-1, x_BMD.shape[1]) % (total // frames), 1
        if has_cls:
            cls_D = table(self, "cls", (self.spec.width,), ("embed",))
            cls_B1D = jnp.broadcast_to(cls_D.astype(x_BMD.dtype), (x_BMD.shape[0], 1, self.spec.width))
            x_BMD = jnp.concatenate([cls_B1D, x_BMD], axis=1)
        x_BMD = constrain(x_BMD, "batch", "tokens", "act_embed")
        stacked = self.stack(
            x_BMD,
            dials=dials,
            globals=int(has_cls),
            train=train,
            times=None if self.spec.layout == "joint" else times,
            places=self._places(places_BM, grid, x_BMD.shape[0]),
        )
        x_BMD = self.norm(stacked.x_BMD, valid=stacked.valid)
        if stacked.kept_BM is not None:
            kept_BM = jnp.take_along_axis(kept_BM, stacked.kept_BM, axis=1)
        if has_cls:
            pooled_BD, tokens_BMD = x_BMD[:, 0].astype(jnp.float32), x_BMD[:, 1:]
        else:
            pooled_BD, tokens_BMD = x_BMD.astype(jnp.float32).mean(axis=1), x_BMD
        if self.by_frame:
            pooled_BTD = pooled_BD.reshape(batch, frames, -1)
            attends = self.pool_frames == "attention"
            pooled_BD = self.frame_pool(pooled_BTD, valid=stacked.valid) if attends else pooled_BTD.mean(axis=1)
            tokens_BMD = tokens_BMD.reshape(batch, -1, tokens_BMD.shape[-1])
        return Output(tokens_BMD, constrain(pooled_BD, "batch", "act_embed"), kept_BM, stacked.valid)

    def _embed(self, video_BTHWC: jax.Array) -> tuple[jax.Array, Size3 | None]:
        """(one embedded token with its position for every tubelet, how many there are along each axis, if they do)."""
        if video_BTHWC.ndim != 5:
            raise ValueError(f"a video batch is [B, T, H, W, C]; found shape {video_BTHWC.shape}")
        _, frames, height, width, _ = video_BTHWC.shape
        spec, dtype = self.spec, self.spec.compute_dtype
        image = self.image_patch is not None and frames == 1
        grid = grid_of(self, (frames, height, width))
        position_xND = self._position(grid, (frames, height, width), image)
        pixels_BTHWC = normalize(video_BTHWC, mean=self.mean, std=self.std, dtype=dtype)
        if self.tubes:
            x_BND = ViewStem(self.tubes, spec.width, dtype, positions=False, name="views")(pixels_BTHWC)
        elif self.by_frame:
            x_BND = ImageStem(self.tubelet[1:], spec.width, dtype, name="patch")(pixels_BTHWC)
        else:
            stem: nn.Module = TubeletStem(self.tubelet, spec.width, dtype, name="patch")
            if self.image_patch is not None:
                image_stem = ImageStem(self.image_patch, spec.width, dtype, name="image_patch")
                if self.is_initializing():  # both have parameters, whatever clip these are made with
                    first_BTHWC = pixels_BTHWC[:, :1]
                    image_stem(first_BTHWC)
                    stem(jnp.repeat(first_BTHWC, self.tubelet[0], axis=1))
                stem = image_stem if image else stem
            x_BND = stem(pixels_BTHWC)
        return x_BND if position_xND is None else x_BND + position_xND.astype(dtype), grid

    def _position(self, grid: Size3 | None, video_THW: Size3, image: bool) -> jax.Array | None:
        """What says to each token where it stands, [1, N, D], or None."""
        frames, height, width = video_THW
        if self.positions == "sincos":
            # Those of the model that this one may have been cut out of.
            full = self.spec.full_width or self.spec.width
            if grid is None:
                fixed_ND = sincos_3d(np.concatenate([view.centres(video_THW) for view in self.tubes]), full)
            else:
                fixed_ND = sincos_1d(math.prod(grid), full)
            return fixed_ND[None, :, : self.spec.width]
        if self.positions == "none" or grid is None:
            return None
        in_time = not self.by_frame and (not image or self.is_initializing())
        temporal_TD = self._positions("temporal", grid[0], f"{frames} frames") if in_time else None
        spatial_ND = self._positions("spatial", grid[1] * grid[2], f"{height}x{width} pixels")
        if temporal_TD is None:
            return jnp.tile(spatial_ND, (grid[0], 1))[None]
        return space_time(temporal_TD, spatial_ND)[None]

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

    def _drop(self, x_BND: jax.Array, grid: Size3 | None, dials: Dials) -> tuple[jax.Array, jax.Array]:
        """The tokens that the mask dial leaves, and their indices."""
        batch, total, _ = x_BND.shape
        if dials.mask == 0 or (dials.mask_kind == "random" and keep_count(total, dials.mask) == total):
            return x_BND, jnp.broadcast_to(jnp.arange(total), (batch, total))
        if not self.has_rng("mask"):
            raise ValueError(f"the dial mask is {dials.mask}, which draws tokens: call with rngs={{'mask': key}}")
        if grid is None:
            if dials.mask_kind != "random":
                raise ValueError(
                    f"views share no grid that a mask of kind {dials.mask_kind!r} could follow; set mask_kind='random'"
                )
            grid = (1, 1, total)
        return keep(self.make_rng("mask"), x_BND, grid, dials.mask, dials.mask_kind, rows_B=dials.rows_B)

    def _places(self, kept_BM: jax.Array, grid: Size3 | None, batch: int) -> Places | None:
        """Where the tokens of the stack stand, for relative positions; cls stands nowhere."""
        if not self.spec.relative_positions or grid is None:
            return None
        if self.by_frame:
            grid = (1, *grid[1:])
        ids_BN = jnp.pad(kept_BM.astype(jnp.int32), ((0, 0), (int(self.pool == "cls"), 0)), constant_values=-1)
        return Places(ids_BN if ids_BN.shape[0] == batch else ids_BN[:1], grid)

    def _check_settings(self) -> None:
        """ValueError for settings that do not go together."""
        if len(self.tubelet) != 3:
            raise ValueError(f"video.tubelet is {self.tubelet}; give (frames, height, width)")
        choices = {"positions": POSITIONS, "pool_frames": layouts.POOLS, "extend_positions": TIME, "inflate": INFLATE}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"video.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        if self.pool_frames != "mean" and not self.by_frame:
            raise ValueError(
                f"video.pool_frames is {self.pool_frames!r}, which pools frames that were encoded one by one; set "
                "transformer.layout='frames', or leave it out"
            )
        if self.by_frame and (self.tubelet[0] != 1 or self.image_patch is not None):
            raise ValueError(
                f"in the layout 'frames' a token is of one frame, and images need no stem of their own; found "
                f"tubelet={self.tubelet} and image_patch={self.image_patch}: give tubelet=(1, height, width) alone"
            )
        if self.image_patch is not None and self.spec.relative_positions:
            raise ValueError(
                "relative positions are of one grid, that of the clips; leave image_patch out, or set "
                "transformer.relative_positions=False"
            )
        if self.views:
            if self.spec.layout != "joint" or self.spec.relative_positions or self.image_patch is not None:
                raise ValueError(
                    "views share no grid of tokens; they need layout='joint', relative_positions=False and no "
                    "image_patch"
                )
            if self.positions == "learned":
                raise ValueError("no table of learned positions fits views; set video.positions='sincos' or 'none'")


def grid_of(model: Model, video_THW: Size3) -> Size3 | None:
    """How many tokens a model makes of a clip along (time, rows, columns); None where views give it no grid."""
    if model.views:
        return None
    image = model.image_patch is not None and video_THW[0] == 1
    return token_grid(video_THW, (1, *model.image_patch) if image and model.image_patch else model.tubelet)
