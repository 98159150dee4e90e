"""How a clip becomes embedded tokens: pixels are normalised on the device, a stem embeds them, positions are added."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.nn.layers import table
from vidlang.nn.spec import TransformerSpec
from vidlang.nn.stems import ImageStem, TubeletStem, View, ViewStem
from vidlang.ops.pixels import normalize
from vidlang.ops.positions import Size2, sincos_1d, sincos_3d
from vidlang.ops.tubelets import Size3, space_time, token_grid

POSITIONS = ("learned", "joint", "none", "sincos")


class ClipEmbedding(nn.Module):
    """One embedded token, with its position, for every tubelet, or for every tube of some views.

    The attributes are those of the video encoder, whose scope it shares: its parameters are the encoder's own. In the
    layout "frames" there is one token for every patch of every frame, and no position in time.
    """

    spec: TransformerSpec
    tubelet: Size3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stem_bias: bool
    positions: str
    position_std: float
    temporal_std: float
    image_patch: Size2 | None
    views: tuple[View, ...]

    def setup(self) -> None:
        if len(self.tubelet) != 3:
            raise ValueError(f"video.tubelet is {self.tubelet}; give (frames, height, width)")
        if self.positions not in POSITIONS:
            raise ValueError(f"video.positions is {self.positions!r}; it is one of {', '.join(POSITIONS)}")
        self.by_frame = self.spec.layout == "frames"
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
            if self.positions in ("learned", "joint"):
                raise ValueError("no table of learned positions fits views; set video.positions='sincos' or 'none'")
        if self.positions == "joint" and (self.by_frame or self.image_patch is not None):
            raise ValueError(
                "video.positions 'joint' is one table for all places of a clip, which frames or images by themselves "
                "have no part in; set 'learned', or leave out image_patch and layout='frames'"
            )

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array) -> tuple[jax.Array, Size3 | None]:
        """(the tokens, how many there are along each axis, if they lie in a grid)."""
        if video_BTHWC.ndim != 5:
            raise ValueError(f"a video batch is [B, T, H, W, C]; found shape {video_BTHWC.shape}")
        _, frames, height, width, _ = video_BTHWC.shape
        dtype = self.spec.compute_dtype
        image = self.image_patch is not None and frames == 1
        grid = clip_grid(self.tubelet, self.image_patch, self.views, (frames, height, width))
        position_xND = self._position(grid, (frames, height, width), image)
        x_BND = self._stem(normalize(video_BTHWC, mean=self.mean, std=self.std, dtype=dtype), image)
        return x_BND if position_xND is None else x_BND + position_xND.astype(dtype), grid

    def _stem(self, pixels_BTHWC: jax.Array, image: bool) -> jax.Array:
        how = self.spec.width, self.spec.compute_dtype, self.stem_bias
        if self.views:
            tokens_BND: jax.Array = ViewStem(self.views, *how, positions=False, name="views")(pixels_BTHWC)
            return tokens_BND
        stem: nn.Module
        if self.by_frame:
            stem = ImageStem(self.tubelet[1:], *how, name="patch")
        else:
            stem = TubeletStem(self.tubelet, *how, name="patch")
        if self.image_patch is not None:
            image_stem = ImageStem(self.image_patch, *how, name="image_patch")
            if self.is_initializing():  # both have parameters, whatever clip these are made with
                first_BTHWC = pixels_BTHWC[:, :1]
                image_stem(first_BTHWC)
                stem(jnp.repeat(first_BTHWC, self.tubelet[0], axis=1))
            stem = image_stem if image else stem
        x_BND: jax.Array = stem(pixels_BTHWC)
        return x_BND

    def _position(self, grid: Size3 | None, video_THW: Size3, image: bool) -> jax.Array | None:
        """What says to each token where it stands, [1, N, D], or None."""
        frames, height, width = video_THW
        if self.positions == "sincos":
            # Those of the model that this one may have been cut out of.
            full = self.spec.full_width or self.spec.width
            if grid is None:
                fixed_ND = sincos_3d(np.concatenate([view.centres(video_THW) for view in self.views]), full)
            else:
                fixed_ND = sincos_1d(math.prod(grid), full)
            return fixed_ND[None, :, : self.spec.width]
        if self.positions == "none" or grid is None:
            return None
        if self.positions == "joint":
            found = f"{frames} frames of {height}x{width} pixels"
            return self._table("positions", math.prod(grid), found, self.position_std)[None]
        in_time = not self.by_frame and (not image or self.is_initializing())
        temporal_TD = self._table("temporal", grid[0], f"{frames} frames", self.temporal_std) if in_time else None
        spatial_ND = self._table("spatial", grid[1] * grid[2], f"{height}x{width} pixels", self.position_std)
        if temporal_TD is None:
            return jnp.tile(spatial_ND, (grid[0], 1))[None]
        return space_time(temporal_TD, spatial_ND)[None]

    def _table(self, name: str, count: int, found: str, std: float) -> jax.Array:
        """The table of `count` positions; a clip of another size than the parameters' is an error."""
        if self.has_variable("params", name):
            size = nn.unbox(self.get_variable("params", name)).shape[0]
            if size != count:
                kind = "" if name == "positions" else f"{name} "
                raise ValueError(
                    f"a clip of {found} needs {count} {kind}positions with tubelets of {self.tubelet}; these "
                    f"parameters have {size}. Give clips of the size they were trained on"
                )
        return table(self, name, (count, self.spec.width), ("position", "embed"), std)


def clip_grid(tubelet: Size3, image_patch: Size2 | None, views: Sequence[object], video_THW: Size3) -> Size3 | None:
    """How many tokens a clip has along (time, rows, columns); None where views give it no grid."""
    if views:
        return None
    return token_grid(video_THW, (1, *image_patch) if image_patch is not None and video_THW[0] == 1 else tubelet)
