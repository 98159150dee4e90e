"""The dials: how much of the encoder runs. They change compute, never parameters, so one checkpoint serves them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from vidlang.core.config import call, is_section
from vidlang.ops.edges import Edges
from vidlang.ops.masking import KINDS
from vidlang.ops.widths import DrawnWidths, WidthSampler

# The streams of random numbers that models ask for; each step gives one key for all of them.
STREAMS = ("mask", "widths", "edges", "dropout", "words", "negatives")


@dataclass(frozen=True)
class Dials:
    """Settings that a model takes with each call; every default means "off". Hashable, but for drawn widths.

    mask: share of the video tokens dropped at random before the first layer, in [0, 1). mask_kind: which tokens go
    together, one of `masking.KINDS`. widths: None for the full width; the name of a preset ("d-dec"), the width of each
    layer, the section of a sampler (name="dec") that draws anew in each step, or a schedule that was drawn. edges: None
    for dense attention, or the section of a graph (local, random, block). keep: (layer, rate) pairs or a section of
    them; after that layer, counted from 0, only ceil(rate * n) of the n tokens go on, those that cls attends to most.
    keep_text: the same for the layers of a fusion encoder, where the text decides which video tokens go on. rows_B: no
    setting, but which rows of the whole batch the model is called with, where that is a part of it.
    """

    mask: float = 0.0
    mask_kind: str = "random"
    widths: Any = None
    edges: Any = None
    keep: Any = ()
    keep_text: Any = ()
    rows_B: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.mask, bool) or not isinstance(self.mask, int | float) or not 0.0 <= self.mask < 1.0:
            raise ValueError(
                f"the dial mask is {self.mask!r}; it is the share of video tokens to drop, a number in [0, 1)"
            )
        if self.mask_kind not in KINDS:
            raise ValueError(f"the dial mask_kind is {self.mask_kind!r}; it is one of {', '.join(KINDS)}")
        object.__setattr__(self, "widths", _read_widths(self.widths))
        edges = self.edges
        if is_section(edges):
            edges = call(Edges, edges, what="dials.edges")
        if not isinstance(edges, Edges | None):
            raise ValueError(f"the dial edges is a section with local, random and block, or None; found {edges!r}")
        object.__setattr__(self, "edges", edges)
        for name in ("keep", "keep_text"):
            object.__setattr__(self, name, _read_keep(name, getattr(self, name)))

    def evaluation(self) -> Dials:
        """These dials without what only training does: no token is masked, and the width is full."""
        drawn = isinstance(self.widths, WidthSampler | DrawnWidths)
        return dataclasses.replace(self, mask=0.0, widths=None if drawn else self.widths)


def streams(key: jax.Array) -> dict[str, jax.Array]:
    """A key for each stream, from that of a step."""
    return {name: jax.random.fold_in(key, number) for number, name in enumerate(STREAMS)}


def _read_widths(widths: Any) -> Any:
    if is_section(widths):
        options = {key: value for key, value in widths.items() if key != "name"}
        return call(WidthSampler, options, what="dials.widths", name=widths.get("name"))
    if widths is None or isinstance(widths, str | WidthSampler | DrawnWidths):
        return widths
    if isinstance(widths, Sequence):
        return tuple(widths)
    raise ValueError(
        f"the dial widths is None, a preset's name, one width a layer, or the section of a sampler; found {widths!r}"
    )


def _read_keep(name: str, keep: Any) -> tuple[tuple[int, float], ...]:
    """(layer, rate) pairs in the order of layers; a config's keys are texts."""
    pairs = list(keep.items()) if isinstance(keep, Mapping) or is_section(keep) else list(keep)
    found: dict[int, float] = {}
    for pair in pairs:
        try:
            layer, rate = pair
            layer = int(layer)
        except (TypeError, ValueError):
            raise ValueError(f"the dial {name} holds (layer, rate) pairs, as in ((3, 0.7),); found {pair!r}") from None
        if layer < 0 or layer in found:
            raise ValueError(f"the dial {name} names the layer {layer}{' twice' if layer in found else ''}: {keep!r}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 < rate <= 1.0:
            raise ValueError(f"the dial {name} keeps {rate!r} after layer {layer}; it is a share above 0, at most 1")
        found[layer] = float(rate)
    return tuple(sorted(found.items()))


# Everything off: the default of every model's `dials`.
OFF = Dials()
