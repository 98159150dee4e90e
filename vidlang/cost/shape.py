"""What of a stage decides which bytes the devices of a mesh must send each other; the mesh itself is not in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import RULES
from vidlang.core.tree import path_name
from vidlang.cost.settings import encoder, has_stack, video_stack
from vidlang.nn.spec import TransformerSpec
from vidlang.objectives import combined
from vidlang.ops.dials import Dials
from vidlang.train import build
from vidlang.train.program import Program
from vidlang.train.recipe import Stage
from vidlang.train.step import with_video

# Objectives that compare every row with all others, by their fields of the joint space.
PAIRED = ("contrastive", "ego_nce", "max_margin", "sigmoid")
# How attention meets the keys of other devices over `context`: by passing them on, or by gathering them all.
RING, GATHER = ("auto", "ring"), ("fused", "chunked", "reference")


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
    # Bytes of the clips and texts that a fusion encoder reads, of which each row gets a wrong one from another.
    fetched: float = 0.0
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
    objectives = _objectives(stage)
    joint = int(build.named(stage.model, "model")[1].get("embed", 0)) if objectives & set(PAIRED) else 0
    micro = build.micro(stage)
    cached = micro.batches > 1 and micro.how == "cached"
    towers = tuple(_towers(stage))
    return Shape(
        leaves,
        program.batch_size,
        towers,
        joint,
        micro.batches,
        cached,
        fetched=program.batch_size * _read_bytes(towers) if "matching" in objectives else 0.0,
        mixed=_clip_bytes(program) if build.augmentation(stage).mixes else 0.0,
        uncounted=_uncounted(stage, towers),
    )


def _objectives(stage: Stage) -> set[str]:
    """The objectives of a stage by their names, those that are summed one by one."""
    name, options = build.named(stage.objective, "objective")
    return {part.name for part in combined.check(options["parts"])} if name == "combined" else {name}


def _leaf(path: str, box: Any, learning: Mapping[str, int], itemsize: int, taught: set[str]) -> Leaf:
    names = box.names if isinstance(box, nn.LogicallyPartitioned) else ()
    whole = box.value if isinstance(box, nn.LogicallyPartitioned) else box
    axes = frozenset(axis for name in names if name for axis in RULES[name])
    trained = learning.get(path, 0) / whole.size
    # A table that is looked up is not gathered; one that is also the output of a language model is.
    is_looked_up = "vocab" in names and not path.startswith("language")
    passes = 0.0 if is_looked_up else 1.0
    if passes and is_stacked(path) and path.split("/")[0] in taught:
        # Of a stack whose first layers are frozen, the backward pass meets the others only.
        passes += trained or 1.0
    return Leaf(path, whole.size * itemsize, axes, trained, passes)


def is_stacked(path: str) -> bool:
    """Layers are gathered one after another, and let go; what stands alone stays until the step is done."""
    return any(part.startswith("layers") for part in path.split("/"))


def _read_bytes(towers: Sequence[Tower]) -> float:
    """Of one row, its tokens after the last layer of the video's tower and after the text's."""
    *_, clip, text = towers
    return sum(float(end.tokens * end.width * end.itemsize) for end in (clip, text))


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
