"""How near an encoded video comes to its source: SSIM and PSNR of the luma."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from vidlang.data.encode import to_yuv

WINDOW = 8  # pixels a side, one window at each pixel, all weighed alike


def ssim(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Mean structural similarity of two pictures in 0..255, over all windows that lie inside them."""
    a_HW, b_HW = a_HW.astype(np.float64), b_HW.astype(np.float64)
    mean_a, mean_b = _window_means(a_HW), _window_means(b_HW)
    # Unbiased, as Wang et al. (2004) have it.
    share = WINDOW**2 / (WINDOW**2 - 1)
    variance_a = share * (_window_means(a_HW * a_HW) - mean_a**2)
    variance_b = share * (_window_means(b_HW * b_HW) - mean_b**2)
    covariance = share * (_window_means(a_HW * b_HW) - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similar / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())


def psnr(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    """Peak signal to noise ratio in dB."""
    error = np.square(a_HW.astype(np.float64) - b_HW).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def luma(rgb_HWC: np.ndarray) -> np.ndarray:
    """The luma of an RGB picture, by the conversion that encoding makes."""
    return plane(to_yuv(rgb_HWC, VideoReformatter()))


def plane(frame: VideoFrame) -> np.ndarray:
    """The luma plane of a frame, copied."""
    first = frame.planes[0]
    return np.frombuffer(memoryview(first), np.uint8).reshape(-1, first.line_size)[:, : first.width].copy()


def compare(sources: Sequence[np.ndarray], coded: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean SSIM and PSNR of pairs of luma planes."""
    pairs = list(zip(sources, coded, strict=True))
    return float(np.mean([ssim(a, b) for a, b in pairs])), float(np.mean([psnr(a, b) for a, b in pairs]))


def _window_means(x_HW: np.ndarray) -> np.ndarray:
    sums = np.pad(x_HW.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[WINDOW:, WINDOW:] - sums[:-WINDOW, WINDOW:] - sums[WINDOW:, :-WINDOW] + sums[:-WINDOW, :-WINDOW]
    return windows / WINDOW**2
