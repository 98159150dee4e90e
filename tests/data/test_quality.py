"""The benchmark's measures of an encoding are the textbook's."""

import numpy as np
import pytest

from benchmarks._quality import WINDOW, luma, psnr, ssim


def direct_ssim(a_HW, b_HW):
    """Window by window, with numpy's own statistics."""
    values = []
    for top in range(a_HW.shape[0] - WINDOW + 1):
        for left in range(a_HW.shape[1] - WINDOW + 1):
            a, b = (x[top : top + WINDOW, left : left + WINDOW].astype(float).ravel() for x in (a_HW, b_HW))
            covariance = np.cov(a, b)
            c1, c2 = 6.5025, 58.5225
            means = 2 * a.mean() * b.mean() + c1, a.mean() ** 2 + b.mean() ** 2 + c1
            spreads = 2 * covariance[0, 1] + c2, covariance[0, 0] + covariance[1, 1] + c2
            values.append(means[0] * spreads[0] / (means[1] * spreads[1]))
    return np.mean(values)


def test_ssim_is_the_formula():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :25]
    a_HW = (127 + 90 * np.sin(x / 3 + y / 5)).astype(np.uint8)
    b_HW = np.clip(a_HW + rng.normal(0, 12, a_HW.shape), 0, 255).astype(np.uint8)
    assert ssim(a_HW, a_HW) == pytest.approx(1)
    assert ssim(a_HW, b_HW) == pytest.approx(direct_ssim(a_HW, b_HW), abs=1e-9)
    assert ssim(a_HW, b_HW) < 0.97


def test_psnr_of_a_known_error():
    a_HW = np.full((8, 8), 100, np.uint8)
    assert psnr(a_HW, a_HW + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))


def test_luma_is_that_of_bt709():
    red_HWC = np.zeros((16, 16, 3), np.uint8)
    red_HWC[..., 0] = 255
    np.testing.assert_allclose(luma(red_HWC), 16 + 219 * 0.2126, atol=1)
