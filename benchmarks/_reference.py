"""What exact scaling gives: antialiased bilinear resampling of planes and RGB in float64, with plain matrices.

Positions are those of luma pixels, the first at 0. A chroma sample k of a subsampled axis lies at 2 k + shift: 0.5 when
it sits between its two pixels, 0 when it sits on the left one.
"""

from __future__ import annotations

import numpy as np
from av import VideoFrame

WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}  # of red and blue in luma


def resampling(
    old: int, new: int, *, step: int = 1, shift: float = 0.0, to: tuple[int, float] = (1, 0.0)
) -> np.ndarray:
    """The matrix [new, old] from samples at step * k + shift to samples at to[0] * i + to[1] of a scaled axis.

    A triangle as wide as a source sample, or as a target sample where that is wider; samples past the edge repeat the
    one at it.
    """
    scale = old * step / (new * to[0])
    centres = (np.arange(new) * to[0] + to[1] + 0.5) * scale - 0.5
    reach = max(step, scale * to[0])
    samples = np.arange(-2 * int(reach) - 4, old + 2 * int(reach) + 4)
    weights = np.clip(1 - np.abs(centres[:, None] - (samples * step + shift)) / reach, 0, None)
    matrix = np.zeros((old, new))
    np.add.at(matrix, np.clip(samples, 0, old - 1), weights.T)
    return (matrix / matrix.sum(0)).T


def planes(frame: VideoFrame) -> list[np.ndarray]:
    """The 8-bit planes of a frame as float64."""
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width].astype(np.float64)
        for plane in frame.planes
    ]


def rgb(yuv: list[np.ndarray], *, matrix: str = "bt709", full: bool = False, left: bool = False) -> np.ndarray:
    """RGB [H, W, 3] in 0..255 of 4:2:0 planes; chroma is spread to all pixels first."""
    luma, *chroma = yuv
    height, width = luma.shape
    shift = 0.0 if left else 0.5
    down = resampling(height // 2, height, step=2, shift=0.5)
    across = resampling(width // 2, width, step=2, shift=shift)
    blue, red = ((down @ plane @ across.T - 128) * (1 if full else 255 / 224) for plane in chroma)
    luma = luma if full else (luma - 16) * 255 / 219
    return to_rgb(luma, blue, red, matrix)


def to_rgb(luma: np.ndarray, blue: np.ndarray, red: np.ndarray, matrix: str) -> np.ndarray:
    """RGB of luma in 0..255 and chroma differences around 0."""
    weight_red, weight_blue = WEIGHTS[matrix]
    r, b = luma + 2 * (1 - weight_red) * red, luma + 2 * (1 - weight_blue) * blue
    g = (luma - weight_red * r - weight_blue * b) / (1 - weight_red - weight_blue)
    return np.clip(np.stack([r, g, b], -1), 0, 255)


def scaled(picture_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at another size."""
    down, across = resampling(picture_HWC.shape[0], height), resampling(picture_HWC.shape[1], width)
    return np.einsum("ih,hwc,jw->ijc", down, picture_HWC, across, optimize=True)
