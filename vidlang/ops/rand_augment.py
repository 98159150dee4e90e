"""RandAugment: to each clip a few operations, drawn from fifteen, each at about the same strength.

This is the variant "rand-m7-n4-mstd0.5-inc1" of the timm library, which VideoMAE's fine-tuning uses. What is drawn
holds for all frames of a clip; what an operation reads off a frame, like its mean, it reads off each.

Rows go one after another, on each device its own: all at once, every row would pay for all of the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.sharding import per_batch_shard
from vidlang.ops import affine, photometric
from vidlang.ops.colours import check_share

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
PHOTOMETRIC = (
    "auto_contrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
OPERATIONS = (*GEOMETRIC, *PHOTOMETRIC)
# The number of no operation.
NONE = len(OPERATIONS)
MOST = 10.0


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations a clip, one after another, each with `probability`.

    The strength of each is drawn from a normal distribution around `magnitude` with `deviation`, and cut to 0..10.
    """

    layers: int = 4
    magnitude: float = 7.0
    deviation: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.layers, bool) or not isinstance(self.layers, int) or self.layers < 0:
            raise ValueError(f"augment.rand.layers is a number of operations, from 0 on; found {self.layers!r}")
        if not 0 <= self.magnitude <= MOST:
            raise ValueError(f"augment.rand.magnitude is a strength from 0 to 10; found {self.magnitude}")
        if self.deviation < 0:
            raise ValueError(f"augment.rand.deviation is that of the strength, from 0 on; found {self.deviation}")
        check_share("rand.probability", self.probability)

    @property
    def is_on(self) -> bool:
        """Whether any clip can change."""
        return self.layers > 0 and self.probability > 0


class Draws(NamedTuple):
    """Which operations, how strong, and which way (1 or -1)."""

    operation_BN: jax.Array
    level_BN: jax.Array
    sign_BN: jax.Array


def draw(key_B: jax.Array, how: RandAugment) -> Draws:
    """What each clip draws from its key."""

    def of_clip(key: jax.Array) -> Draws:
        which, happens, level, sign = jax.random.split(key, 4)
        operation_N = jax.random.randint(which, (how.layers,), 0, len(OPERATIONS))
        happens_N = jax.random.uniform(happens, (how.layers,)) < how.probability
        # On a grid: the last bit of a draw is another in another program, and operations cut down to whole numbers.
        level_N = jnp.round(256 * (how.magnitude + how.deviation * jax.random.normal(level, (how.layers,)))) / 256
        sign_N = jnp.where(jax.random.bernoulli(sign, 0.5, (how.layers,)), 1.0, -1.0)
        return Draws(jnp.where(happens_N, operation_N, NONE), jnp.clip(level_N, 0.0, MOST), sign_N)

    return jax.vmap(of_clip)(key_B)


def rand_augment(x_BTHWC: jax.Array, drawn: Draws) -> jax.Array:
    """The clips, uint8, after the operations that were drawn for them."""

    def of_device(x_BTHWC: jax.Array, *drawn: jax.Array, gather: Any) -> jax.Array:
        return jax.lax.map(lambda row: _of_clip(row[0], Draws(*row[1:])), (x_BTHWC, *drawn))

    changed: jax.Array = per_batch_shard(of_device, x_BTHWC, *drawn)
    return changed


def operate(x_THWC: jax.Array, operation: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """One clip, uint8, after the operation with this number in OPERATIONS; only that one runs."""
    branch = jnp.asarray(_BRANCH)[operation]
    changed: jax.Array = jax.lax.switch(branch, _BRANCHES, x_THWC, operation, level / MOST, sign)
    return changed


def _of_clip(x_THWC: jax.Array, drawn: Draws) -> jax.Array:
    def layer(x_THWC: jax.Array, drawn: Sequence[jax.Array]) -> tuple[jax.Array, None]:
        return operate(x_THWC, *drawn), None

    x_THWC, _ = jax.lax.scan(layer, x_THWC, tuple(drawn))
    return x_THWC


# A branch gets the clip, the operation's number, its strength as a share of the most, and its way.
Branch = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _nothing(x_THWC: jax.Array, operation: jax.Array, share: jax.Array, sign: jax.Array) -> jax.Array:
    return x_THWC


def _geometric(x_THWC: jax.Array, operation: jax.Array, share: jax.Array, sign: jax.Array) -> jax.Array:
    """All five in one branch: they differ in six numbers, and looking pixels up is much of the program."""
    _, height, width, _ = x_THWC.shape
    way, none = sign * share, jnp.zeros_like(share)
    maps_56 = jnp.stack(
        [
            affine.rotation(30.0 * way, height, width),
            affine.shear(0.3 * way, none),
            affine.shear(none, 0.3 * way),
            affine.shift(0.45 * width * way, none),
            affine.shift(none, 0.45 * height * way),
        ]
    )
    return affine.warp(x_THWC, maps_56[operation])


def _plain(function: Callable[[jax.Array], jax.Array]) -> Branch:
    """An operation without a strength."""
    return lambda x_THWC, operation, share, sign: function(x_THWC)


def _at(function: Callable[[jax.Array, jax.Array], jax.Array], setting: Callable[[jax.Array], jax.Array]) -> Branch:
    return lambda x_THWC, operation, share, sign: function(x_THWC, setting(share))


def _enhance(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Branch:
    """An operation whose factor goes from 1 up or down, the further the stronger."""
    return lambda x_THWC, operation, share, sign: function(x_THWC, 1 + 0.9 * sign * share)


_OWN: dict[str, Branch] = {
    "auto_contrast": _plain(photometric.auto_contrast),
    "equalize": _plain(photometric.equalize),
    "invert": _plain(photometric.invert),
    "posterize": _at(photometric.posterize, lambda share: 4 - jnp.floor(4 * share)),
    "solarize": _at(photometric.solarize, lambda share: 256 - jnp.floor(256 * share)),
    "solarize_add": _at(photometric.solarize_add, lambda share: jnp.floor(110 * share)),
    "color": _enhance(photometric.color),
    "contrast": _enhance(photometric.contrast),
    "brightness": _enhance(photometric.brightness),
    "sharpness": _enhance(photometric.sharpness),
}
_BRANCHES: tuple[Branch, ...] = (_nothing, _geometric, *(_OWN[name] for name in PHOTOMETRIC))
# Of each operation, and of none, its place among the branches.
_BRANCH = np.array([1] * len(GEOMETRIC) + list(range(2, 2 + len(PHOTOMETRIC))) + [0], np.int32)
