"""What the devices of a mesh must send each other in a train step, counted from the model's shapes and no compiler.

    data      gradients are summed over all devices that hold the same parameters
    fsdp      parameters are gathered before they are used, forward and backward, and their gradients summed into shards
    tensor    each layer's two products that shrink are summed, forward and backward, and one again under remat
    context   keys, values and their gradients, in a ring or gathered, and all gradients once more
    slices    the part of `data` that lies between slices, over the slow network
    contrastive objectives gather the rows of all devices, and send their gradients back; so do fusion encoders the
              clips and texts that wrong pairs are made of
    clips that are mixed with others (mixup, cutmix) go to another device

Matrices travel in the type in which the model computes: compilers move the conversion behind the exchange. Small things
are left out: counts and norms of some bytes, and the vectors of a text whose table of words is split. Over `context`
only dense joint attention is counted: where rows of tokens are chosen, the compiler decides how they move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vidlang.core.sharding import BATCH_AXES, SLICES
from vidlang.cost import collectives
from vidlang.cost.shape import RING, Leaf, Shape, is_stacked

# Of a layer with a tensor axis: attention's and the mlp's output forward, and the gradients of both their inputs.
SUMS_OF_A_LAYER = 4
FLOAT32 = 4


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange: over these mesh axes, about so many bytes, so often in a step.

    bytes: of the whole array that the devices of one group put together or sum.
    """

    what: str
    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: float = 1.0

    def sent(self, sizes: Mapping[str, int]) -> float:
        """Bytes that one device sends in a step over a mesh of these sizes."""
        return self.times * collectives.sent(self.kind, self.bytes, math.prod(sizes.get(axis, 1) for axis in self.axes))

    def between(self, sizes: Mapping[str, int]) -> float:
        """Of these, bytes that leave the slice: what its devices have summed or gathered goes on from one of each."""
        slices = sizes.get(SLICES, 0) or 1
        within = math.prod(sizes.get(axis, 1) for axis in self.axes) // slices
        if "data" not in self.axes or slices == 1:
            return 0.0
        return self.times * collectives.sent(self.kind, self.bytes, slices) / max(1, within)


def exchanges(shape: Shape, sizes: Mapping[str, int], *, scatters: bool = True) -> list[Exchange]:
    """All exchanges of a step on a mesh of these sizes, largest first.

    scatters: sums of which each device keeps its own part send only that part. Compilers that do not see this (XLA's
    for CPUs never does) send the whole sum and cut it, which is twice as much.
    """
    found = [*_of_parameters(shape, sizes, scatters), *_of_layers(shape, sizes), *_of_pairs(shape, sizes)]
    if sizes.get("context", 1) > 1:
        if shape.uncounted:
            raise ValueError(
                f"exchanges over the mesh axis 'context' are not counted by a formula for {shape.uncounted}; compile "
                "the step with --target, which counts those of the program"
            )
        found += _of_tokens(shape, sizes, scatters)
    return sorted((each for each in found if each.sent(sizes)), key=lambda each: -each.sent(sizes))


def total(found: Sequence[Exchange], sizes: Mapping[str, int]) -> float:
    """Bytes that one device sends in a step."""
    return sum(each.sent(sizes) for each in found)


def _of_parameters(shape: Shape, sizes: Mapping[str, int], scatters: bool) -> Iterator[Exchange]:
    fsdp, tensor = sizes.get("fsdp", 1), sizes.get("tensor", 1)
    gathered = shards = whole = 0.0
    for leaf in shape.leaves:
        size = leaf.bytes / (tensor if "tensor" in leaf.axes else 1)
        if "fsdp" in leaf.axes:
            gathered += _passes(leaf, shape) * size
            shards += leaf.trained * size
        else:
            whole += leaf.trained * size
    rounds = shape.parts
    yield Exchange("parameters, before they are used", "all-gather", ("fsdp",), gathered)
    yield Exchange("gradients into shards", "reduce-scatter" if scatters else "all-reduce", ("fsdp",), shards, rounds)
    yield Exchange("gradients of the same shard", "all-reduce", ("data",), shards / fsdp, rounds)
    yield Exchange("gradients of what every device holds", "all-reduce", BATCH_AXES, whole, rounds)
    # Each device of a clip has the gradients of its own tokens.
    yield Exchange("gradients of a clip's tokens", "all-reduce", ("context",), whole + shards / fsdp, rounds)


def _passes(leaf: Leaf, shape: Shape) -> float:
    """How often a step gathers a parameter: layers anew in each part of a batch, and what stands alone once for all."""
    if not leaf.passes:
        return 0.0
    passes = leaf.passes + int(shape.cached)
    return passes * shape.parts if is_stacked(leaf.path) else passes


def _of_layers(shape: Shape, sizes: Mapping[str, int]) -> Iterator[Exchange]:
    rows = _rows(shape, sizes)
    for tower in shape.towers:
        sums = tower.layers * (SUMS_OF_A_LAYER + int(tower.again) + 2 * int(shape.cached))
        size = rows * tower.tokens * tower.width * tower.itemsize
        yield Exchange("outputs of split layers", "all-reduce", ("tensor",), size, sums)


def _of_tokens(shape: Shape, sizes: Mapping[str, int], scatters: bool) -> Iterator[Exchange]:
    """Keys and values go to all devices of a clip, and their gradients come back."""
    ways = sizes["context"]
    for tower in shape.towers:
        pairs = 2 * _rows(shape, sizes) * tower.tokens * tower.width / sizes.get("tensor", 1)
        forward = tower.layers * (1 + int(tower.again) + int(shape.cached))
        if tower.attention in RING:
            # Backward they go round again, and float32 gradients behind them, with two more steps to be at home. A
            # ring of two is no loop: its first step of gradients, zeros, is left out, and the keys that are passed on
            # for computing again serve the backward pass too.
            is_loop, stretch = ways > 2, pairs / ways
            turns = (forward + tower.layers * (1 if is_loop or not tower.again else 0)) * (ways - 1)
            yield Exchange("keys and values", "collective-permute", ("context",), stretch * tower.itemsize, turns)
            turns = tower.layers * (ways + 1 if is_loop else ways)
            yield Exchange("gradients of keys and values", "collective-permute", ("context",), stretch * FLOAT32, turns)
        else:
            size = pairs * tower.itemsize
            kind = "reduce-scatter" if scatters else "all-reduce"
            yield Exchange("keys and values", "all-gather", ("context",), size, forward)
            yield Exchange("gradients of keys and values", kind, ("context",), size, tower.layers)


def _rows(shape: Shape, sizes: Mapping[str, int]) -> float:
    return shape.rows / math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def _of_pairs(shape: Shape, sizes: Mapping[str, int]) -> Iterator[Exchange]:
    if shape.joint:
        yield Exchange("rows of all devices", "all-gather", BATCH_AXES, shape.pair_bytes)
        yield Exchange("gradients of these rows", "reduce-scatter", BATCH_AXES, shape.pair_bytes)
    if shape.fetched:
        yield Exchange("clips and texts to be fused with wrong ones", "all-gather", BATCH_AXES, shape.fetched)
        yield Exchange("gradients of these clips and texts", "reduce-scatter", BATCH_AXES, shape.fetched)
    ways = math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
    if ways > 1:
        yield Exchange("clips to be mixed with others", "collective-permute", BATCH_AXES, shape.mixed / ways)
