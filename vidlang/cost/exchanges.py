"""What the devices of a mesh must send each other in a train step, counted from the model's shapes and no compiler.

    data      gradients are summed over all devices that hold the same parameters
    fsdp      parameters are gathered before they are used, forward and backward, and their gradients summed into shards
    tensor    each layer's two products that shrink are summed, forward and backward, and one again under remat
    context   keys, values and their gradients, in a ring or gathered, and all gradients once more
    slices    the part of `data` that lies between slices, over the slow network
    contrastive objectives gather the rows of all devices, and send their gradients back
    clips that are mixed with others (mixup, cutmix) go to another device

Matrices travel in the type in which the model computes: compilers move the conversion behind the exchange. Small things
are left out: counts and norms of some bytes, and the vectors of a text whose table of words is split. Over `context`
only dense joint attention is counted: where rows of tokens are chosen, the compiler decides how they move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import BATCH_AXES, RULES, SLICES
from vidlang.core.tree import path_name
from vidlang.cost import collectives
from vidlang.cost.settings import encoder, has_stack, video_stack
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import Dials
from vidlang.train import build
from vidlang.train.program import Program
from vidlang.train.recipe import Stage
from vidlang.train.step import with_video

# Objectives that compare every row with all others, by their fields of the joint space.
PAIRED = ("contrastive", "ego_nce", "max_margin", "sigmoid")
# Of a layer with a tensor axis: attention's and the mlp's output forward, and the gradients of both their inputs.
SUMS_OF_A_LAYER = 4
# How attention meets the keys of other devices over `context`: by passing them on, or by gathering them all.
RING, GATHER = ("auto", "ring"), ("fused", "chunked", "reference")
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


@dataclass(frozen=True)
class Leaf:
    """A parameter: its path, bytes as it travels, mesh axes that split it, whether it learns, passes that use it."""

    path: str
    bytes: float
    axes: frozenset[str]
    trained: float
    passes: float


@dataclass(frozen=True)
class Tower:
    """Layers of a transformer: how many, tokens of a row, width, bytes of a number, whether they are computed again.

    attention: one of `ops.attention.IMPLEMENTATIONS`.
    """

    layers: int
    tokens: int
    width: int
    itemsize: int
    again: bool
    attention: str


@dataclass(frozen=True)
class Shape:
    """What of a stage decides about exchanges; a mesh is not in it."""

    leaves: tuple[Leaf, ...]
    rows: int
    towers: tuple[Tower, ...]
    joint: int = 0
    # Parts of a batch that a step takes one after another, and whether it encodes each once more before.
    parts: int = 1
    cached: bool = False
    # Bytes of a step's clips where these are mixed with each other, 0 where they are not.
    mixed: float = 0.0
    # Why exchanges over `context` cannot be counted; "" where they can.
    uncounted: str = ""

    @property
    def pair_bytes(self) -> float:
        """Bytes of the rows of both sides that the objective compares with all others; 0 where it does not."""
        return float(2 * self.rows * self.joint * np.dtype(np.float32).itemsize)


def shape_of(program: Program, stage: Stage) -> Shape:
    """The shape of a stage whose program is built."""
    trained = jax.eval_shape(lambda params: program.optimizer.split(params)[0], program.params)
    learning = {path_name(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(trained)}
    itemsize = np.dtype(encoder(stage)[1].compute_dtype if has_stack(stage) else np.float32).itemsize
    found = jax.tree_util.tree_leaves_with_path(
        program.boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    heads = {path_name(path).split("/")[0] for path, _ in found}
    taught = {head for head in heads if any(path.split("/")[0] == head for path in learning)}
    leaves = tuple(_leaf(path_name(path), leaf, learning, itemsize, taught) for path, leaf in found)
    is_paired = build.named(stage.objective, "objective")[0] in PAIRED
    joint = int(build.named(stage.model, "model")[1].get("embed", 0)) if is_paired else 0
    micro = build.micro(stage)
    cached = micro.batches > 1 and micro.how == "cached"
    towers = tuple(_towers(stage))
    mixed = _clip_bytes(program) if build.augmentation(stage).mixes else 0.0
    return Shape(leaves, program.batch_size, towers, joint, micro.batches, cached, mixed, _uncounted(stage, towers))


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


def _leaf(path: str, box: Any, learning: Mapping[str, int], itemsize: int, taught: set[str]) -> Leaf:
    names = box.names if isinstance(box, nn.LogicallyPartitioned) else ()
    whole = box.value if isinstance(box, nn.LogicallyPartitioned) else box
    axes = frozenset(axis for name in names if name for axis in RULES[name])
    trained = learning.get(path, 0) / whole.size
    # A table that is looked up is not gathered; one that is also the output of a language model is.
    is_looked_up = "vocab" in names and not path.startswith("language")
    passes = 0.0 if is_looked_up else 1.0
    if passes and _is_stacked(path) and path.split("/")[0] in taught:
        # Of a stack whose first layers are frozen, the backward pass meets the others only.
        passes += trained or 1.0
    return Leaf(path, whole.size * itemsize, axes, trained, passes)


def _is_stacked(path: str) -> bool:
    """Layers are gathered one after another, and let go; what stands alone stays until the step is done."""
    return any(part.startswith("layers") for part in path.split("/"))


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
    return passes * shape.parts if _is_stacked(leaf.path) else passes


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
    ways = math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
    if ways > 1:
        yield Exchange("clips to be mixed with others", "collective-permute", BATCH_AXES, shape.mixed / ways)


def _clip_bytes(program: Program) -> float:
    """Of all clips of a step, three bytes a pixel."""
    clips = jax.eval_shape(with_video, dict(program.fields))
    return float(clips["video_BTHWC"].size)


def _towers(stage: Stage) -> Iterator[Tower]:
    if not has_stack(stage):
        return
    stack, spec = video_stack(stage), encoder(stage)[1]
    for tokens in stack.tokens:
        yield _tower(spec, 1, tokens + stack.global_tokens)
    options = build.named(stage.model, "model")[1]
    text = options.get("text") or {}
    if "transformer" in text:
        spec = call(TransformerSpec, text["transformer"], what="text.transformer")
        yield _tower(spec, spec.layers, int(stage.clip.get("text_length", text.get("max_length", 0))))


def _tower(spec: TransformerSpec, layers: int, tokens: int) -> Tower:
    itemsize = np.dtype(spec.compute_dtype).itemsize
    return Tower(layers, tokens, spec.width, itemsize, spec.remat != "none", spec.attention)


def _uncounted(stage: Stage, towers: Sequence[Tower]) -> str:
    """What of the stage moves tokens over `context` in ways that the compiler chooses."""
    if not towers:
        return "models without a video encoder"
    spec = encoder(stage)[1]
    if spec.layout != "joint":
        return f"attention along the layout {spec.layout!r}"
    if build.dials(stage) != Dials():
        return "stages with dials"
    if spec.frozen_layers:
        return "frozen layers"
    kinds = {tower.attention for tower in towers} - {*RING, *GATHER}
    return f"the attention {', '.join(sorted(kinds))}" if kinds else ""
