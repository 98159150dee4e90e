"""What the devices of a mesh must send each other in a train step, counted from the model's shapes and no compiler.

    data      gradients are summed over all devices that hold the same parameters
    fsdp      parameters are gathered before they are used, forward and backward, and their gradients summed into shards
    tensor    each layer's two products that shrink are summed, forward and backward, and one again under remat
    slices    the part of `data` that lies between slices, over the slow network
    contrastive objectives gather the rows of all devices, and send their gradients back

Matrices travel in the type in which the model computes: compilers move the conversion behind the exchange. Small things
are left out: counts and norms of some bytes, and the vectors of a text whose table of words is split. So are tokens
over `context`, of which the compiled program tells; `rows` says so.
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
from vidlang.cost.program import Program
from vidlang.cost.settings import encoder, has_stack, video_stack
from vidlang.nn.spec import TransformerSpec
from vidlang.train import build
from vidlang.train.recipe import Stage
from vidlang.train.step import boxed_params

# Objectives that compare every row with all others, by their fields of the joint space.
PAIRED = ("contrastive", "ego_nce", "max_margin", "sigmoid")
# Of a layer with a tensor axis: attention's and the mlp's output forward, and the gradients of both their inputs.
SUMS_OF_A_LAYER = 4


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
class Shape:
    """What of a stage decides about exchanges; a mesh is not in it."""

    leaves: tuple[Leaf, ...]
    rows: int
    # For each tower: layers, tokens of a row, width, bytes of a number, whether layers are computed again.
    towers: tuple[tuple[int, int, int, int, bool], ...]
    joint: int = 0
    # Parts of a batch that a step takes one after another, and whether it encodes each once more before.
    parts: int = 1
    cached: bool = False

    @property
    def pair_bytes(self) -> float:
        """Bytes of the rows of both sides that the objective compares with all others; 0 where it does not."""
        return float(2 * self.rows * self.joint * np.dtype(np.float32).itemsize)


def shape_of(program: Program, stage: Stage) -> Shape:
    """The shape of a stage whose program is built."""
    boxed = jax.eval_shape(lambda key: boxed_params(program.model, program.fields, key), jax.random.key(0))
    trained = jax.eval_shape(lambda params: program.optimizer.split(params)[0], program.params)
    learning = {path_name(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(trained)}
    itemsize = np.dtype(encoder(stage)[1].compute_dtype if has_stack(stage) else np.float32).itemsize
    found = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    heads = {path_name(path).split("/")[0] for path, _ in found}
    taught = {head for head in heads if any(path.split("/")[0] == head for path in learning)}
    leaves = tuple(_leaf(path_name(path), leaf, learning, itemsize, taught) for path, leaf in found)
    is_paired = build.named(stage.objective, "objective")[0] in PAIRED
    joint = int(build.named(stage.model, "model")[1].get("embed", 0)) if is_paired else 0
    micro = build.micro(stage)
    cached = micro.batches > 1 and micro.how == "cached"
    return Shape(leaves, program.batch_size, tuple(_towers(stage)), joint, micro.batches, cached)


def exchanges(shape: Shape, sizes: Mapping[str, int], *, scatters: bool = True) -> list[Exchange]:
    """All exchanges of a step on a mesh of these sizes, largest first.

    scatters: sums of which each device keeps its own part send only that part. Compilers that do not see this (XLA's
    for CPUs never does) send the whole sum and cut it, which is twice as much.
    """
    if sizes.get("context", 1) > 1:
        raise ValueError(
            "exchanges over the mesh axis 'context' are not counted by a formula; compile the step with --target, "
            "which counts those of the program"
        )
    found = [*_of_parameters(shape, sizes, scatters), *_of_layers(shape, sizes), *_of_pairs(shape)]
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


def _passes(leaf: Leaf, shape: Shape) -> float:
    """How often a step gathers a parameter: layers anew in each part of a batch, and what stands alone once for all."""
    if not leaf.passes:
        return 0.0
    passes = leaf.passes + int(shape.cached)
    return passes * shape.parts if _is_stacked(leaf.path) else passes


def _of_layers(shape: Shape, sizes: Mapping[str, int]) -> Iterator[Exchange]:
    rows = shape.rows / math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
    for layers, tokens, width, itemsize, again in shape.towers:
        sums = layers * (SUMS_OF_A_LAYER + int(again) + 2 * int(shape.cached))
        yield Exchange("outputs of split layers", "all-reduce", ("tensor",), rows * tokens * width * itemsize, sums)


def _of_pairs(shape: Shape) -> Iterator[Exchange]:
    if shape.joint:
        yield Exchange("rows of all devices", "all-gather", BATCH_AXES, shape.pair_bytes)
        yield Exchange("gradients of these rows", "reduce-scatter", BATCH_AXES, shape.pair_bytes)


def _towers(stage: Stage) -> Iterator[tuple[int, int, int, int, bool]]:
    if not has_stack(stage):
        return
    stack, spec = video_stack(stage), encoder(stage)[1]
    bytes_of = np.dtype(spec.compute_dtype).itemsize
    for tokens in stack.tokens:
        yield 1, tokens + stack.global_tokens, spec.width, bytes_of, spec.remat != "none"
    options = build.named(stage.model, "model")[1]
    text = options.get("text") or {}
    if "transformer" in text:
        spec = call(TransformerSpec, text["transformer"], what="text.transformer")
        length = int(stage.clip.get("text_length", text.get("max_length", 0)))
        yield spec.layers, length, spec.width, np.dtype(spec.compute_dtype).itemsize, spec.remat != "none"
