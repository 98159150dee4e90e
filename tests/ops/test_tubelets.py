"""Tubelets against loops and against a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.tubelets import patchify, space_time, token_grid

TUBELET = (2, 3, 4)
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 9, 8, 3)).astype(np.uint8)


def test_token_order_is_time_row_column() -> None:
    grid = token_grid(VIDEO.shape[1:4], TUBELET)
    assert grid == (2, 3, 2)
    t, h, w = TUBELET
    expected = [
        [
            VIDEO[b, i * t : (i + 1) * t, j * h : (j + 1) * h, k * w : (k + 1) * w].ravel()
            for i in range(grid[0])
            for j in range(grid[1])
            for k in range(grid[2])
        ]
        for b in range(len(VIDEO))
    ]
    found = patchify(jnp.asarray(VIDEO), TUBELET)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, np.array(expected))


def test_linear_map_of_tubelets_is_a_strided_convolution() -> None:
    video = jnp.asarray(VIDEO, jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(*TUBELET, 3, 5)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        video, kernel, TUBELET, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    found = patchify(video, TUBELET) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-2)


def test_positions_are_summed_in_token_order() -> None:
    rng = np.random.default_rng(1)
    temporal, spatial = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    expected = [temporal[t] + spatial[n] for t in range(3) for n in range(4)]
    np.testing.assert_allclose(space_time(jnp.asarray(temporal), jnp.asarray(spatial)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "words"),
    [((5, 9, 8), "frames 5"), ((4, 10, 8), "height 10"), ((4, 9, 6), "width 6"), ((0, 9, 8), "frames 0")],
)
def test_a_rest_is_an_error_with_its_numbers(size: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} is no multiple of"):
        token_grid(size, TUBELET)
