"""Changes of colour, on pixels that are numbers from 0 to 255: brightness, contrast, saturation, hue, and none at all.

Each clip has one factor for all of its frames. Grey is 0.299 R + 0.587 G + 0.114 B; hue is that of HSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Jitter:
    """Colour changes with `probability`, each factor drawn evenly from [max(0, 1 - s), 1 + s] at strength s.

    brightness: x * f. contrast: grey of the clip on average + f times the difference to it. saturation: grey of the
    pixel + f times the difference to it. hue: HSV hue turned by up to `hue` of a full turn either way (at most 0.5);
    value and saturation stay. Results are cut to 0..255 after each.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.jitter.{name} is a strength from 0 on; found {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"augment.jitter.hue is a share of a full turn, from 0 to 0.5; found {self.hue}")
        check_share("jitter.probability", self.probability)

    @property
    def is_on(self) -> bool:
        """Whether any clip can change."""
        return self.probability > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0


def jitter(x_BTHWC: jax.Array, draws: Sequence[jax.Array], how: Jitter) -> jax.Array:
    """The clips recoloured by four draws [B] from [0, 1), one for each of the changes."""
    brightness_B, contrast_B, saturation_B, hue_B = draws
    if how.brightness:
        x_BTHWC = clip(x_BTHWC * _factor(brightness_B, how.brightness))
    if how.contrast:
        # One mean a clip: with one a frame, a moving object would make the background flicker.
        mean = grey(x_BTHWC).mean(axis=(1, 2, 3, 4), keepdims=True)
        x_BTHWC = clip(mean + _factor(contrast_B, how.contrast) * (x_BTHWC - mean))
    if how.saturation:
        plain = grey(x_BTHWC)
        x_BTHWC = clip(plain + _factor(saturation_B, how.saturation) * (x_BTHWC - plain))
    if how.hue:
        x_BTHWC = turn_hue(x_BTHWC, how.hue * (2 * hue_B - 1))
    return x_BTHWC


def grey(x_BTHWC: jax.Array) -> jax.Array:
    """The brightness of each pixel, as one channel; written out, for a matrix product may round more."""
    red, green, blue = (weight * x_BTHWC[..., c : c + 1] for c, weight in enumerate(GREY))
    return red + green + blue


def turn_hue(x_BTHWC: jax.Array, turn_B: jax.Array) -> jax.Array:
    """The colours with their HSV hue moved on by a share of a full turn; value and saturation stay."""
    red, green, blue = (x_BTHWC[..., channel] for channel in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(spread > 0, spread, 1.0)
    # Sixths of a turn from red, by which of the three is largest; grey has no hue, and stays whatever is said here.
    # Not by which equals `value`: a compiler may work out either anew, with another last bit, and then none does.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sixths = sixths + 6.0 * turn_B.reshape(-1, 1, 1, 1)

    def channel(offset: float) -> jax.Array:
        away = jnp.mod(offset + sixths, 6.0)
        return value - spread * jnp.clip(jnp.minimum(away, 4.0 - away), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def clip(x_BTHWC: jax.Array) -> jax.Array:
    """Numbers beyond those of pixels become the nearest that is one."""
    return jnp.clip(x_BTHWC, 0.0, 255.0)


def _factor(drawn_B: jax.Array, strength: float) -> jax.Array:
    low, high = max(0.0, 1 - strength), 1 + strength
    return (low + drawn_B * (high - low)).reshape(-1, 1, 1, 1, 1)


def check_share(name: str, value: float) -> None:
    """ValueError where a setting of `augment` is no probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"augment.{name} is a probability from 0 to 1; found {value}")
