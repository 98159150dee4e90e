"""How pixels become tokens: tubelets of a clip, patches of single frames, or views of several sizes side by side.

A stem takes normalised pixels [B, T, H, W, C] and gives tokens [B, N, D], in time, rows and columns, without positions
but for the views, which no table of learned ones fits. With `take` it computes the first `take` of its D channels.
Parameters are `kernel`, [t, h, w, C, D] or [h, w, C, D], and `bias`. A model may own an image stem and a video stem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.sharding import constrain
from vidlang.nn.layers import PATCH_INIT, parameter
from vidlang.ops.positions import Size2, sincos_3d
from vidlang.ops.tubelets import Size3, patchify

INFLATE = ("mean", "central")


def _check_sizes(found: Sequence[int], count: int, what: str, least: int = 1) -> None:
    """ValueError unless these are `count` whole numbers of at least `least`."""
    whole = isinstance(found, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in found)
    if not whole or len(found) != count or min(found) < least:
        words = "(frames, height, width)" if count == 3 else "(height, width)"
        raise ValueError(f"a {what} is {words}, whole numbers of {least} or more; found {found!r}")


class TubeletStem(nn.Module):
    """One token for every tubelet of (frames, height, width); coarse ones in time or space are just larger."""

    tubelet: Size3
    width: int
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array, *, take: int | None = None) -> jax.Array:
        _check_sizes(self.tubelet, 3, "tubelet")
        kernel, offset_D = _parameters(self, "", self.tubelet, video_BTHWC, take)
        return _project(patchify(video_BTHWC, self.tubelet), kernel, offset_D, self.dtype)


class ImageStem(nn.Module):
    """One token for every patch (height, width) of every frame by itself; an image is a clip of one frame."""

    patch: Size2
    width: int
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array, *, take: int | None = None) -> jax.Array:
        _check_sizes(self.patch, 2, "patch")
        kernel, offset_D = _parameters(self, "", self.patch, video_BTHWC, take)
        return _project(patchify(video_BTHWC, (1, *self.patch)), kernel, offset_D, self.dtype)


@dataclass(frozen=True)
class View:
    """A lattice of tubes in a clip: their size, the stride from one to the next, and where the first begins.

    All are (frames, height, width). Strides may leave gaps, or let tubes overlap, and a rest at the end stays unseen.
    """

    size: Size3
    stride: Size3
    offset: Size3 = (0, 0, 0)

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("stride", 1), ("offset", 0)):
            _check_sizes(getattr(self, name), 3, f"view's {name}", least)
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a config may give lists

    def grid(self, video_THW: Sequence[int]) -> Size3:
        """How many tubes lie wholly in a clip, along (time, height, width); none is an error."""
        rest = [total - first - size for total, first, size in zip(video_THW, self.offset, self.size, strict=True)]
        if min(rest) < 0:
            raise ValueError(
                f"a clip of {tuple(video_THW)} (frames, height, width) holds no tube of {self.size} from "
                f"{self.offset} on; give larger clips or leave this view out"
            )
        frames, height, width = (1 + left // step for left, step in zip(rest, self.stride, strict=True))
        return frames, height, width

    def centres(self, video_THW: Sequence[int]) -> np.ndarray:
        """Where the tubes' middles are, in frames and pixels counted from 0: [N, 3], in the order of the tokens."""
        axes = [
            first + step * np.arange(count) + (size - 1) / 2
            for first, step, count, size in zip(self.offset, self.stride, self.grid(video_THW), self.size, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


# TubeViT's four views of a clip of 32 frames of 224 x 224 pixels.
TUBEVIT = (
    View((8, 8, 8), (16, 32, 32)),
    View((16, 4, 4), (6, 32, 32), (4, 8, 8)),
    View((4, 12, 12), (16, 32, 32), (0, 16, 16)),
    View((1, 16, 16), (32, 16, 16)),
)


class ViewStem(nn.Module):
    """Tokens of several views one after the other, each with a kernel of its own (TubeViT).

    The parameters of view i are `kernel_i` and `bias_i`. positions: whether each token has the fixed sine and cosine
    position of its tube's centre added; without, whoever separates the views by `view_counts` adds theirs.
    """

    views: Sequence[View]
    width: int
    dtype: Any
    bias: bool = True
    positions: bool = True

    @nn.compact
    def __call__(self, video_BTHWC: jax.Array, *, take: int | None = None) -> jax.Array:
        if not self.views:
            raise ValueError("a stem of views needs at least one view")
        tokens = []
        for index, view in enumerate(self.views):
            kernel, offset_D = _parameters(self, f"_{index}", view.size, video_BTHWC, take)
            tokens.append(_convolve(video_BTHWC, view, kernel, offset_D, self.dtype))
        x_BND = jnp.concatenate(tokens, axis=1)
        if self.positions:
            places_N3 = np.concatenate([view.centres(video_BTHWC.shape[1:4]) for view in self.views])
            x_BND = x_BND + sincos_3d(places_N3, self.width)[None, :, :take].astype(self.dtype)
        return x_BND


def view_counts(views: Sequence[View], video_THW: Sequence[int]) -> tuple[int, ...]:
    """How many tokens each view gives of a clip of (frames, height, width)."""
    return tuple(math.prod(view.grid(video_THW)) for view in views)


def inflate(kernel_hwCD: jax.Array, frames: int, how: str = "mean") -> jax.Array:
    """A tubelet kernel [t, h, w, C, D] from one for images, so that training on video starts from an image model.

    "mean" puts a t-th of it on every frame: a clip that stands still gives the tokens of its image. "central" puts
    all of it on the middle frame, t // 2, and zeros on the others: a clip gives the tokens of that frame (ViViT).
    """
    if how not in INFLATE:
        raise ValueError(f"unknown way to inflate a kernel {how!r}; there are: {', '.join(INFLATE)}")
    if kernel_hwCD.ndim != 4 or frames < 1:
        raise ValueError(f"a kernel [h, w, C, D] inflates to 1 frame or more; found {kernel_hwCD.shape}, {frames}")
    share_T = np.full(frames, 1 / frames) if how == "mean" else np.arange(frames) == frames // 2
    kernel_hwCD = jnp.asarray(kernel_hwCD)
    return jnp.asarray(share_T, kernel_hwCD.dtype).reshape(-1, 1, 1, 1, 1) * kernel_hwCD[None]


def resize_kernel(kernel_hwCD: jax.Array, size: Size2) -> jax.Array:
    """A kernel for patches of another size (height, width), which gives the token of the patch shrunk or enlarged.

    That is, what the given kernel says of a patch of `size` after a bilinear, antialiased resize to its own size: a
    coarse patch starts with the token that a smaller picture would have had there.
    """
    if kernel_hwCD.ndim != 4:
        raise ValueError(f"an image kernel is [h, w, C, D]; found {kernel_hwCD.shape}")
    _check_sizes(size, 2, "patch")
    known = kernel_hwCD.shape[:2]
    rows, columns = (
        jax.image.resize(jnp.eye(new), (old, new), "linear", antialias=True)
        for old, new in zip(known, size, strict=True)
    )
    kernel = jnp.einsum("hH,wW,hwCD->HWCD", rows, columns, kernel_hwCD, precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(kernel_hwCD.dtype)


def _parameters(
    module: Any, suffix: str, size: tuple[int, ...], video_BTHWC: jax.Array, take: int | None
) -> tuple[jax.Array, jax.Array | None]:
    """The first `take` channels of a stem's kernel [*size, C, D] and, if it has one, of its bias."""
    if video_BTHWC.ndim != 5:
        raise ValueError(f"a video batch is [B, T, H, W, C], an image a clip of one frame; found {video_BTHWC.shape}")
    channels, width = video_BTHWC.shape[-1], module.width
    if take is not None and not 1 <= take <= width:
        raise ValueError(f"a stem of {width} channels cannot give the first {take}")

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        # Variances follow the matrix that the kernel is, whatever its axes.
        return PATCH_INIT(key, (math.prod(shape[:-1]), width), dtype).reshape(shape)

    names = ("patch",) * (len(size) + 1) + ("embed",)
    leaves = [parameter(module, f"kernel{suffix}", init, (*size, channels, width), names)]
    if module.bias:
        leaves.append(parameter(module, f"bias{suffix}", nn.initializers.zeros, (width,), ("embed",)))
    if take is not None and take < width:
        # An axis that lies on several devices is gathered before it is cut, as it would be for any use.
        leaves = [constrain(leaf, *(None,) * leaf.ndim)[..., :take] for leaf in leaves]
    return leaves[0], leaves[1] if module.bias else None


def _project(pixels_BNP: jax.Array, kernel: jax.Array, offset_D: jax.Array | None, dtype: Any) -> jax.Array:
    """A linear map of flattened patches: the convolution whose stride is its size, as one matrix product."""
    matrix_PD = kernel.astype(dtype).reshape(-1, kernel.shape[-1])
    x_BND = jax.lax.dot_general(pixels_BNP.astype(dtype), matrix_PD, (((2,), (0,)), ((), ())))
    return x_BND if offset_D is None else x_BND + offset_D.astype(dtype)[None, None]


def _convolve(
    video_BTHWC: jax.Array, view: View, kernel: jax.Array, offset_D: jax.Array | None, dtype: Any
) -> jax.Array:
    """The tokens of one view: a convolution, for its tubes may overlap."""
    batch, *video_THW, _ = video_BTHWC.shape
    count = math.prod(view.grid(video_THW))  # refuses a clip that holds no tube
    t, h, w = view.offset
    y_BTHWD = jax.lax.conv_general_dilated(
        video_BTHWC[:, t:, h:, w:].astype(dtype),
        kernel.astype(dtype),
        view.stride,
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    x_BND = y_BTHWD.reshape(batch, count, y_BTHWD.shape[-1])
    return x_BND if offset_D is None else x_BND + offset_D.astype(dtype)[None, None]
