"""Clips changed at random on the device: mirrored, recoloured, turned, blurred, erased, and mixed with each other.

Pixels are numbers from 0 to 255. All frames of a clip are changed alike, so that nothing flickers. What happens to a
clip is a function of (key of the step, place of the clip in the global batch) and never depends on how many devices
share the batch, nor on which other changes are switched on. The order is fixed:

    flip -> rand -> jitter (brightness, contrast, saturation, hue) -> grey -> blur -> erase -> mixup or cutmix

A change that is off is not in the compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.sharding import constrain
from vidlang.ops.colours import Jitter, check_share, clip, grey, jitter
from vidlang.ops.erasing import Erase, erase
from vidlang.ops.rand_augment import RandAugment, draw, rand_augment

# One stream of random numbers for each change; a new one gets a new number.
FLIP, JITTER, GREY, BLUR, MIX, RAND, ERASE = range(7)
# Rows between a clip and the one mixed into it: the next row may be its partner of the same scene.
PARTNER_DISTANCE = 2


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with `probability`, its sigma in pixels drawn evenly from a range; borders are mirrored.

    The kernel reaches three times the largest sigma.
    """

    probability: float = 0.5
    sigma: Sequence[float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        check_share("blur.probability", self.probability)
        object.__setattr__(self, "sigma", tuple(self.sigma))
        if len(self.sigma) != 2 or not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"augment.blur.sigma is a range of pixels above 0, as (0.1, 2.0); found {self.sigma}")

    @property
    def radius(self) -> int:
        """Pixels that the kernel reaches to each side."""
        return math.ceil(3 * self.sigma[1])


@dataclass(frozen=True)
class Mix:
    """With `probability` a clip is mixed with another; the other's share is drawn from Beta(alpha, alpha)."""

    probability: float = 0.5
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_share("mixup or cutmix: probability", self.probability)
        if self.alpha <= 0:
            raise ValueError(f"augment: alpha of mixup and cutmix must be above 0; found {self.alpha}")


@dataclass(frozen=True)
class Augmentation:
    """What is done to the clips of a step; the default is nothing.

    flip, grey: probabilities of mirroring left and right, and of losing the colour. mixup: the clip is the sum of its
    share of itself and the rest of another. cutmix: a box of the frame, with the other's share of its area (what lies
    outside the frame is cut off), shows the other clip. A clip gets one of the two at most. The rest is described where
    its settings are.
    """

    flip: float = 0.0
    rand: RandAugment = RandAugment(layers=0)
    jitter: Jitter = Jitter()
    grey: float = 0.0
    blur: Blur = Blur(probability=0.0)
    erase: Erase = Erase(probability=0.0)
    mixup: Mix = Mix(probability=0.0)
    cutmix: Mix = Mix(probability=0.0)

    def __post_init__(self) -> None:
        check_share("flip", self.flip)
        check_share("grey", self.grey)
        if self.mixes > 1:
            raise ValueError(
                f"augment: a clip is mixed once, by mixup or by cutmix, but their probabilities add up to {self.mixes}"
            )

    @property
    def mixes(self) -> float:
        """Probability that a clip is mixed with another."""
        return self.mixup.probability + self.cutmix.probability


NOTHING = Augmentation()


def augment(batch: Mapping[str, Any], key: jax.Array, how: Augmentation) -> dict[str, Any]:
    """The batch with its video_BTHWC changed: uint8 as long as no more happens than flip, rand and erase, else float32
    in 0..255.

    `key` belongs to the step. Mixing adds mix_partner_B, the place in the batch of the clip that was mixed in (one's
    own where none was), and mix_share_B float32, the clip's own share of what is now to be seen.
    """
    if how == NOTHING:
        return dict(batch)
    x_BTHWC = batch["video_BTHWC"]
    if x_BTHWC.shape[-1] != 3:
        raise ValueError(f"augmentation is for the colours R, G and B; found clips of shape {x_BTHWC.shape}")
    places_B = constrain(jnp.arange(x_BTHWC.shape[0]), "batch")
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, places_B)
    if how.flip:
        x_BTHWC = _where(_chance(key_B, FLIP, how.flip), x_BTHWC[:, :, :, ::-1], x_BTHWC)
    if how.rand.is_on:
        x_BTHWC = rand_augment(x_BTHWC, draw(_stream(key_B, RAND), how.rand))
    if how.jitter.is_on:
        chosen_B, *draws = _uniforms(key_B, JITTER, 5)
        x_BTHWC = _floats(x_BTHWC)
        x_BTHWC = _where(chosen_B < how.jitter.probability, jitter(x_BTHWC, draws, how.jitter), x_BTHWC)
    if how.grey:
        x_BTHWC = _floats(x_BTHWC)
        x_BTHWC = _where(_chance(key_B, GREY, how.grey), grey(x_BTHWC), x_BTHWC)
    if how.blur.probability:
        x_BTHWC = _blur(key_B, _floats(x_BTHWC), how.blur)
    if how.erase.probability:
        x_BTHWC = erase(x_BTHWC, _stream(key_B, ERASE), how.erase)
    if not how.mixes:
        return {**batch, "video_BTHWC": x_BTHWC}
    x_BTHWC, partner_B, share_B = _mix(key_B, _floats(x_BTHWC), places_B, how)
    return {**batch, "video_BTHWC": x_BTHWC, "mix_partner_B": partner_B, "mix_share_B": share_B}


def _blur(key_B: jax.Array, x_BTHWC: jax.Array, how: Blur) -> jax.Array:
    chosen_B, where_B = _uniforms(key_B, BLUR, 2)
    low, high = how.sigma
    sigma_B1 = (low + where_B * (high - low))[:, None]
    radius = how.radius
    if radius >= min(x_BTHWC.shape[2:4]):
        raise ValueError(
            f"augment.blur with sigma up to {high} reaches {radius} pixels, and a frame is only "
            f"{x_BTHWC.shape[2]} x {x_BTHWC.shape[3]}; take a smaller sigma"
        )
    offset_1K = np.arange(-radius, radius + 1, dtype=np.float32)[None]
    weight_BK = jnp.exp(-0.5 * (offset_1K / sigma_B1) ** 2)
    weight_BK = weight_BK / weight_BK.sum(axis=1, keepdims=True)
    # A kernel of one pixel leaves a clip exactly as it is.
    weight_BK = jnp.where((chosen_B < how.probability)[:, None], weight_BK, (offset_1K == 0).astype(np.float32))
    for axis in (2, 3):
        size = x_BTHWC.shape[axis]
        margins = [(radius, radius) if i == axis else (0, 0) for i in range(5)]
        padded = jnp.pad(x_BTHWC, margins, mode="reflect")
        x_BTHWC = jnp.zeros_like(x_BTHWC)
        for tap in range(2 * radius + 1):
            shifted = jax.lax.slice_in_dim(padded, tap, tap + size, axis=axis)
            x_BTHWC += _rows(weight_BK[:, tap]) * shifted
    return clip(x_BTHWC)


def _mix(
    key_B: jax.Array, x_BTHWC: jax.Array, places_B: jax.Array, how: Augmentation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(mixed clips, whom with, own shares)."""
    rows, _, height, width, _ = x_BTHWC.shape
    chance_B, down_B, across_B = _uniforms(key_B, MIX, 3)
    # The same distance for all: a device then needs two rows of its neighbour, and no gather over the whole batch.
    distance = min(PARTNER_DISTANCE, rows - 1)
    other_BTHWC = constrain(jnp.roll(x_BTHWC, -distance, axis=0), "batch", None, None, None, None)
    mixup, cutmix = how.mixup, how.cutmix
    own_B = jnp.ones([rows], jnp.float32)
    if mixup.probability:
        own_B = jnp.where(chance_B < mixup.probability, 1 - _beta(key_B, mixup.alpha), own_B)
        # A share of 1 leaves the clip exactly as it is.
        mixed_BTHWC = _rows(own_B) * x_BTHWC + _rows(1 - own_B) * other_BTHWC
    else:
        mixed_BTHWC = x_BTHWC
    if cutmix.probability:
        side_B = jnp.where(chance_B >= 1 - cutmix.probability, jnp.sqrt(_beta(key_B, cutmix.alpha)), 0.0)
        inside_BH, inside_BW = _span(down_B, side_B, height), _span(across_B, side_B, width)
        inside = inside_BH[:, None, :, None, None] & inside_BW[:, None, None, :, None]
        mixed_BTHWC = jnp.where(inside, other_BTHWC, mixed_BTHWC)
        # What is to be seen counts, not what was drawn: a box may reach beyond the frame.
        shown_B = inside_BH.sum(axis=1) * inside_BW.sum(axis=1) / (height * width)
        own_B = jnp.where(side_B > 0, 1 - shown_B, own_B).astype(jnp.float32)
    partner_B = jnp.where(own_B < 1, (places_B + distance) % rows, places_B)
    return mixed_BTHWC, partner_B.astype(jnp.int32), own_B


def _span(centre_B: jax.Array, side_B: jax.Array, size: int) -> jax.Array:
    """Which of `size` pixels lie in a stretch of side * size pixels around centre * size."""
    first_B = jnp.round((centre_B - side_B / 2) * size)[:, None]
    last_B = jnp.round((centre_B + side_B / 2) * size)[:, None]
    pixel_S = jnp.arange(size)[None, :]
    return (pixel_S >= first_B) & (pixel_S < last_B)


def _beta(key_B: jax.Array, alpha: float) -> jax.Array:
    """Another clip's share, from Beta(alpha, alpha)."""
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(_stream(_stream(key_B, MIX), 1))


def _stream(key_B: jax.Array, change: int) -> jax.Array:
    """The keys of one change."""
    return jax.vmap(lambda key: jax.random.fold_in(key, change))(key_B)


def _uniforms(key_B: jax.Array, change: int, count: int) -> list[jax.Array]:
    """`count` numbers a clip, each evenly from [0, 1), of one change's own stream."""

    drawn_BN = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(_stream(key_B, change))
    return [drawn_BN[:, number] for number in range(count)]


def _chance(key_B: jax.Array, change: int, probability: float) -> jax.Array:
    return _uniforms(key_B, change, 1)[0] < probability


def _where(chosen_B: jax.Array, one_BTHWC: jax.Array, other_BTHWC: jax.Array) -> jax.Array:
    return jnp.where(_rows(chosen_B), one_BTHWC, other_BTHWC)


def _rows(value_B: jax.Array) -> jax.Array:
    """A number for each clip, as something that meets [B, T, H, W, C]."""
    return value_B.reshape(-1, 1, 1, 1, 1)


def _floats(x_BTHWC: jax.Array) -> jax.Array:
    return x_BTHWC.astype(jnp.float32)
