"""Widths of layers (AdaVid): which there are, how training draws them, and the prefixes of arrays that they mean.

A width d is a share of the full one, D. A layer at width d sees the first d channels of its input, and uses the first
channels of each parameter and d / D of its heads, each of full size. A schedule gives each layer its width: what a
narrower layer drops is gone, and a wider one after it finds zeros there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.config import did_you_mean

SHARES = (1.0, 0.75, 0.5, 0.25)
ORDERS = ("dec", "inc", "free")
DRAWS = ("sequences", "sequential", "sorted")

# The evaluation settings of AdaVid's Table 1: shares of D, each for an equal run of layers.
PRESETS = {
    "d-768": (1.0,),
    "d-576": (0.75,),
    "d-384": (0.5,),
    "d-192": (0.25,),
    "d-dec": (1.0, 0.75, 0.5, 0.25),
    "d-dec-high": (1.0, 0.75, 0.5),
    "d-dec-low": (0.75, 0.5, 0.25),
    "d-inc": (0.25, 0.5, 0.75, 1.0),
    "d-inc-high": (0.5, 0.75, 1.0),
    "d-inc-low": (0.25, 0.5, 0.75),
}


@dataclass(frozen=True)
class WidthSampler:
    """How training draws a schedule each step.

    name: "dec" never widens with depth, "inc" never narrows, "free" draws each layer by itself. draw, for the first
    two: "sequences" gives every such sequence the same probability (mean width per layer of four quarters falls evenly
    from 0.94 D to 0.31 D; half the compute), "sorted" sorts independent draws (the same mean compute, less variance),
    "sequential" draws each layer from the widths that are left (an eighth of the compute: deep layers hardly ever see
    more than the least width). shares: the widths there are, as shares of D, from the widest on. full: the share of
    steps that run at D throughout, beside those that happen to.
    """

    name: str
    draw: str = "sequences"
    shares: tuple[float, ...] = SHARES
    full: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(float(share) for share in self.shares))
        for field, value, known in (("name", self.name, ORDERS), ("draw", self.draw, DRAWS)):
            if value not in known:
                raise ValueError(
                    f"dials.widths.{field} is {value!r}{did_you_mean(str(value), known)}; it is one of "
                    f"{', '.join(known)}"
                )
        if not self.shares or self.shares[0] != 1.0 or list(self.shares) != sorted(set(self.shares), reverse=True):
            raise ValueError(f"dials.widths.shares must fall from 1.0 on, as in {SHARES}; found {self.shares}")
        if self.shares[-1] <= 0:
            raise ValueError(f"dials.widths.shares must be above 0; found {self.shares}")
        if not 0.0 <= self.full <= 1.0:
            raise ValueError(f"dials.widths.full is a share of the steps, from 0 to 1; found {self.full}")

    def __call__(self, key: jax.Array, layers: int) -> DrawnWidths:
        """A schedule of this many layers, as data."""
        full_key, key = jax.random.split(key)
        if self.name == "free":
            index_L = jax.random.randint(key, (layers,), 0, len(self.shares))
        else:
            index_L = _rising(key, layers, len(self.shares), self.draw)
        if self.name == "inc":
            index_L = index_L[::-1]
        if self.full:
            index_L = jnp.where(jax.random.bernoulli(full_key, self.full), 0, index_L)
        return DrawnWidths(index_L.astype(jnp.int32), self.shares)


@flax.struct.dataclass
class DrawnWidths:
    """A schedule as data: one compiled program serves all of them, and each costs what its widths cost."""

    index_L: jax.Array
    shares: tuple[float, ...] = flax.struct.field(pytree_node=False)

    def mean_share(self) -> jax.Array:
        """The mean width as a share of D."""
        return jnp.asarray(self.shares, jnp.float32)[self.index_L].mean()


def _rising(key: jax.Array, layers: int, count: int, draw: str) -> jax.Array:
    """Never falling numbers in 0 .. count-1."""
    if draw == "sorted":
        return jnp.sort(jax.random.randint(key, (layers,), 0, count))
    if draw == "sequential":

        def step(least: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            index = jax.random.randint(key, (), least, count)
            return index, index

        return jax.lax.scan(step, jnp.int32(0), jax.random.split(key, layers))[1]
    # Stars and bars: the layers are stars among count - 1 bars in random places; the bars before a star count it up.
    places = layers + count - 1
    bar_P = jnp.zeros(places, bool).at[jax.random.permutation(key, places)[: count - 1]].set(True)
    star_L = jnp.argsort(bar_P, stable=True)[:layers]
    return jnp.cumsum(bar_P)[star_L]


def schedule(widths: str | Sequence[int], *, layers: int, width: int, head_size: int) -> tuple[int, ...]:
    """The width of each layer, from a preset's name or from the widths themselves; checked."""
    if isinstance(widths, str):
        if widths not in PRESETS:
            hint = did_you_mean(widths, PRESETS)
            raise ValueError(f"unknown preset of widths {widths!r}{hint}; there are: {', '.join(PRESETS)}")
        runs = np.array_split(np.arange(layers), len(PRESETS[widths]))
        return tuple(
            share_width(share, width=width, head_size=head_size)
            for share, run in zip(PRESETS[widths], runs, strict=True)
            for _ in run
        )
    found = tuple(widths)
    if len(found) != layers:
        raise ValueError(f"the dial widths has {len(found)} entries for {layers} layers: {found}; give each layer one")
    for d in found:
        if isinstance(d, bool) or not isinstance(d, int | np.integer) or not 0 < d <= width or d % head_size:
            raise ValueError(
                f"the dial widths holds {d!r}; a width is a multiple of the head size {head_size}, from {head_size} to "
                f"{width}"
            )
    return tuple(int(d) for d in found)


def share_width(share: float, *, width: int, head_size: int) -> int:
    """The width that a share of D is; ValueError unless it is whole heads."""
    heads = share * width / head_size
    if heads != round(heads):
        raise ValueError(
            f"{share} of the width {width} is {share * width:g}, no multiple of the head size {head_size}; choose "
            "other widths, or a model with more heads"
        )
    return round(heads) * head_size


def prefix(x: jax.Array, axis: int, size: int, groups: int = 1) -> jax.Array:
    """The first `size` entries along an axis or, where it is `groups` groups in a row, as many of each group.

    An axis whose groups lie on different devices is so cut without moving anything between them.
    """
    full = x.shape[axis]
    if size == full:
        return x
    if not 0 < size < full or size % groups or full % groups:
        raise ValueError(f"cannot take {size} of {full} entries in {groups} groups")
    if groups == 1:
        return jax.lax.slice_in_dim(x, 0, size, axis=axis)
    axis %= x.ndim
    grouped = x.reshape(*x.shape[:axis], groups, full // groups, *x.shape[axis + 1 :])
    taken = jax.lax.slice_in_dim(grouped, 0, size // groups, axis=axis + 1)
    return taken.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :])


def fit(x: jax.Array, width: int) -> jax.Array:
    """The last axis at this width: what lies beyond is dropped, what is missing is zero."""
    found = x.shape[-1]
    if found > width:
        return x[..., :width]
    return x if found == width else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - found)])
