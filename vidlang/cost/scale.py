"""How long a step takes on many devices: what one computes, and what it waits for others, by printed figures of cards.

Nothing here is measured. An exchange takes its bytes over the links of one card; how much of it hides behind
computation, compilers and networks decide, so two ends are told: all of it, and none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidlang.core.sharding import AXES, SLICES
from vidlang.cost.cards import UTILISATION, Card, step_seconds
from vidlang.cost.collectives import Collective
from vidlang.cost.exchanges import Exchange, exchanges
from vidlang.cost.program import StepMemory
from vidlang.cost.shape import Shape

# Kinds of exchange beside sums, which any mesh of several devices has, and the axes of which one must be split.
NEEDS = {
    "all-gather": ("fsdp", "context", "tensor"),
    "reduce-scatter": ("fsdp", "context", "tensor"),
    "all-to-all": ("fsdp", "context", "tensor"),
    "collective-permute": ("fsdp", "context", "tensor"),
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one device: on its own, and for what it sends within and between slices."""

    alone: float
    within: float
    between: float

    @property
    def longest(self) -> float:
        """Where nothing is hidden."""
        return self.alone + self.within + self.between

    @property
    def shortest(self) -> float:
        """Where everything is hidden that can be."""
        return max(self.alone, self.within, self.between)

    @property
    def efficiency(self) -> tuple[float, float]:
        """The share of a step in which a device does its own work: at least, and at most."""
        return self.alone / self.longest, self.alone / self.shortest


def compiled_time(
    card: Card, dtype: str, flops: float, memory: StepMemory, utilisation: float = UTILISATION
) -> StepTime:
    """The time of a compiled step with so many operations a device; ValueError for a card without known links."""
    alone = step_seconds(card, dtype, flops=flops, traffic=memory.traffic, utilisation=utilisation)
    slow = sum(one.sent for one in memory.exchanges if one.between_slices)
    fast = sum(one.sent for one in memory.exchanges if not one.between_slices)
    return StepTime(alone, _over(card.link, fast), _over(card.dcn, slow))


def planned_time(card: Card, alone: float, found: Sequence[Exchange], sizes: Mapping[str, int]) -> StepTime:
    """The time of a step that takes `alone` seconds without others, from counted exchanges."""
    slow = sum(each.between(sizes) for each in found)
    return StepTime(alone, _over(card.link, sum(each.sent(sizes) for each in found)), _over(card.dcn, slow))


def weak_scaling(
    card: Card, shape: Shape, alone: float, pods: Sequence[Mapping[str, int]]
) -> list[tuple[int, Mapping[str, int], StepTime]]:
    """(devices, mesh, time) where every device keeps as many rows as on its own: the batch grows with the devices.

    shape: that of the step of one device.
    """
    rows = []
    for sizes in pods:
        devices = math.prod(sizes.get(axis, 1) for axis in AXES)
        grown = dataclasses.replace(shape, rows=shape.rows * devices)
        rows.append((devices, sizes, planned_time(card, alone, exchanges(grown, sizes), sizes)))
    return rows


def unexpected(found: Sequence[Collective], sizes: Mapping[str, int], shape: Shape) -> list[Collective]:
    """Exchanges of a compiled step of this shape that a mesh of these sizes does not imply.

    Of what objectives and fusion encoders gather from all devices there may be three times as many bytes (numbers and
    validity of rows, and the gradients), of clips to be mixed with others four times (bytes that have become float32).
    """
    groups = _groups(sizes)
    budget, strange = 3 * (shape.pair_bytes + shape.fetched), []
    moved = 4 * shape.mixed / (sizes.get("data", 1) * sizes.get("fsdp", 1))
    for one in found:
        is_of_a_group = one.groups_of in groups or one.kind == "collective-permute"
        allowed = one.kind == "all-reduce" or any(sizes.get(axis, 1) > 1 for axis in NEEDS[one.kind])
        if not allowed and one.kind in ("all-gather", "reduce-scatter") and is_of_a_group:
            budget -= one.times * one.bytes
            allowed = budget >= 0
        if not allowed and one.kind == "collective-permute":
            moved -= one.sent
            allowed = moved >= 0
        if not (allowed and is_of_a_group):
            strange.append(one)
    return strange


def _groups(sizes: Mapping[str, int]) -> set[int]:
    """Numbers of devices that lie along any axes of the mesh; slices cut the first."""
    slices = sizes.get(SLICES, 0) or 1
    data = {1, slices, sizes.get("data", 1) // slices, sizes.get("data", 1)}
    groups = data
    for axis in AXES[1:]:
        groups = groups | {size * sizes.get(axis, 1) for size in groups}
    return groups


def _over(bandwidth: float, size: float) -> float:
    if size and not bandwidth:
        raise ValueError("nothing is known of this card's links; name a card of vidlang/cost/cards.py that has them")
    return size / bandwidth if size else 0.0
