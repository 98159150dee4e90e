"""Pixels are normalised as arithmetic in float64 says."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.ops.pixels import normalize

ALL_VALUES = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, axis=-1)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5,)), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), ((0.0,), (1.0, 2.0, 0.5))]
)
def test_every_value_of_every_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    expected = (ALL_VALUES.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    found = normalize(jnp.asarray(ALL_VALUES), mean=mean, std=std, dtype=jnp.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    half = normalize(jnp.asarray(ALL_VALUES), mean=mean, std=std, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)


def test_what_cannot_be_meant_is_refused() -> None:
    video = jnp.asarray(ALL_VALUES)
    with pytest.raises(ValueError, match="float32; expected uint8"):
        normalize(video.astype(jnp.float32), mean=(0.5,), std=(0.5,), dtype=jnp.float32)
    with pytest.raises(ValueError, match="mean has 2 values for 3 channels"):
        normalize(video, mean=(0.5, 0.5), std=(0.5,), dtype=jnp.float32)
    with pytest.raises(ValueError, match="std must be positive"):
        normalize(video, mean=(0.5,), std=(0.0,), dtype=jnp.float32)
