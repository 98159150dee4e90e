"""Between videos and tokens: a tubelet is a small box of pixels, (frames, height, width); each becomes one token.

Tokens run in time, then rows, then columns; the values inside a tubelet in frame, row, column, channel. A linear map
of flattened tubelets is therefore a 3-D convolution whose stride is its kernel size, with kernel [t, h, w, C, D].
"""

from __future__ import annotations

import jax

Size3 = tuple[int, int, int]


def token_grid(video_THW: Size3, tubelet: Size3) -> Size3:
    """How many tubelets fit along (time, height, width); a rest is an error, for pixels are never silently cut."""
    for name, size, step in zip(("frames", "height", "width"), video_THW, tubelet, strict=True):
        if step < 1 or size < 1 or size % step:
            raise ValueError(
                f"a video of {video_THW} (frames, height, width) does not divide into tubelets of {tubelet}: "
                f"{name} {size} is no multiple of {step}; change the clip's size or the model's tubelet"
            )
    frames, height, width = (size // step for size, step in zip(video_THW, tubelet, strict=True))
    return frames, height, width


def patchify(video_BTHWC: jax.Array, tubelet: Size3) -> jax.Array:
    """The video's tubelets, flattened: [B, N, t*h*w*C]."""
    batch, frames, height, width, channels = video_BTHWC.shape
    grid = token_grid((frames, height, width), tubelet)
    (gt, gh, gw), (t, h, w) = grid, tubelet
    boxes = video_BTHWC.reshape(batch, gt, t, gh, h, gw, w, channels)
    return boxes.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, gt * gh * gw, t * h * w * channels)


def space_time(temporal_TD: jax.Array, spatial_ND: jax.Array) -> jax.Array:
    """One position per token, [T*N, D]: that of its time plus that of its place in the frame."""
    summed_TND = temporal_TD[:, None, :] + spatial_ND[None, :, :]
    return summed_TND.reshape(-1, summed_TND.shape[-1])
