"""Chooses the sizes of a mesh that a config leaves open: as few devices as fit share parameters, as many the batch.

An axis of size 0, fsdp or tensor, is chosen: the smallest fsdp with which every stage fits a device, and where none
does, tensor grows too. What a device holds is counted from shapes: parameters, moments and gradients exactly, what the
layers keep for the backward pass roughly. `launch.plan --target` compiles the step and knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidlang.core.sharding import AXES, BATCH_AXES, RULES, SLICES, make_mesh
from vidlang.cost.cards import CARDS
from vidlang.cost.program import build_program
from vidlang.cost.settings import encoder, has_stack, video_stack
from vidlang.nn.spec import TransformerSpec
from vidlang.train.program import Program
from vidlang.train.recipe import Recipe, Stage, read_recipe

# Of a device's memory, what a plan may fill: the rest is for programs, fragments and the next batch.
FILLED = 0.85
OPEN = ("fsdp", "tensor")
# Names by which JAX calls cards, and by which `cards.CARDS` does.
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}


@dataclass(frozen=True)
class Held:
    """Bytes that a device holds in a step; activations are an estimate, or None where the model has no such formula."""

    parameters: float
    optimizer: float
    gradients: float
    activations: float | None

    @property
    def total(self) -> float:
        """All that is known of it."""
        return self.parameters + self.optimizer + self.gradients + (self.activations or 0.0)


@dataclass(frozen=True)
class Leaf:
    """An array of the state: what it is for, its shape and the mesh axes of each dimension."""

    role: str
    bytes: int
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    def on_one(self, sizes: Mapping[str, int]) -> float:
        """Bytes of it on one device."""
        return self.bytes / math.prod(sizes[axis] for axes in self.axes for axis in axes)

    def divides(self, sizes: Mapping[str, int]) -> bool:
        """Whether each dimension divides over its axes."""
        ways = [math.prod(sizes[axis] for axis in axes) for axes in self.axes]
        return all(size % way == 0 for size, way in zip(self.shape, ways, strict=False))


@dataclass(frozen=True)
class Need:
    """What a stage needs: the arrays of its state, its batch, and bytes that its layers keep for each row."""

    stage: str
    leaves: tuple[Leaf, ...]
    rows: int
    row_bytes: float | None

    def held(self, sizes: Mapping[str, int]) -> Held:
        """What a device of a mesh of these sizes holds."""
        roles = {"parameters": 0.0, "optimizer": 0.0, "gradients": 0.0}
        for leaf in self.leaves:
            roles[leaf.role] += leaf.on_one(sizes)
        rows = self.rows / math.prod(sizes[axis] for axis in BATCH_AXES)
        ways = sizes["tensor"] * sizes["context"]
        return Held(**roles, activations=None if self.row_bytes is None else rows * self.row_bytes / ways)

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether batch and parameters divide over a mesh of these sizes."""
        ways = math.prod(sizes[axis] for axis in BATCH_AXES)
        return self.rows % ways == 0 and all(leaf.divides(sizes) for leaf in self.leaves)


def need_of(recipe: Recipe, index: int) -> Need:
    """What stage `index` needs, from shapes alone."""
    stage, program = recipe.stages[index], build_program(recipe, index)

    def roles(params: Any) -> dict[str, Any]:
        trained = program.optimizer.split(params)[0]
        return {"parameters": params, "gradients": trained, "optimizer": program.optimizer.transform.init(trained)}

    leaves = []
    for role, tree in jax.eval_shape(roles, program.boxed).items():
        for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)):
            names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
            array = leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf
            axes = tuple(RULES[name] if name else () for name in names)
            leaves.append(Leaf(role, array.size * array.dtype.itemsize, array.shape, axes))
    return Need(stage.name, tuple(leaves), program.batch_size, _row_bytes(stage, program))


def choose(recipe: Recipe, devices: int, memory: float) -> tuple[dict[str, int], list[tuple[str, Held]]]:
    """(the sizes of the recipe's mesh with its open axes chosen, what each stage then holds on a device).

    ValueError where no sizes fit, with what comes nearest.
    """
    needs = [need_of(recipe, index) for index in range(len(recipe.stages))]
    tried: list[tuple[float, dict[str, int], str]] = []
    for sizes in _candidates(recipe.mesh, devices):
        if not all(need.takes(sizes) for need in needs):
            continue
        held = [(need.stage, need.held(sizes)) for need in needs]
        stage, most = max(held, key=lambda each: each[1].total)
        if most.total <= FILLED * memory:
            slices = recipe.mesh.get(SLICES, 0)
            return {**sizes, **({SLICES: slices} if slices else {})}, held
        tried.append((most.total, sizes, stage))
    if not tried:
        raise ValueError(
            f"no sizes of {', '.join(axis for axis in OPEN if recipe.mesh.get(axis, 1) == 0)} divide the batch and the "
            f"widths of this recipe on {devices} devices; choose a batch_size that is a multiple of them"
        )
    least, sizes, stage = min(tried, key=lambda each: each[0])
    raise ValueError(
        f"stage {stage!r} does not fit {devices} devices of {memory / 1e9:.3g} GB: with {_text(sizes)} each would hold "
        f"{least / 1e9:.3g} GB. Take more devices, a smaller batch_size, or transformer.remat='full'"
    )


def is_open(mesh: Mapping[str, int]) -> bool:
    """Whether a config leaves sizes to be chosen."""
    return any(mesh.get(axis, 1) == 0 for axis in OPEN)


def memory_of(device: Any) -> float | None:
    """Bytes of a device, as it tells or as its name is known; None for others, and for CPUs, whose memory is shared."""
    if device.platform == "cpu":
        return None
    told = (device.memory_stats() or {}).get("bytes_limit")
    known = CARDS.get(KINDS.get(device.device_kind, ""))
    return float(told) if told else known.memory if known else None


def describe(sizes: Mapping[str, int], held: list[tuple[str, Held]], memory: float) -> str:
    """Lines for the log: the mesh, and bytes a device."""
    lines = [f"mesh {_text(sizes)}; of {memory / 1e9:.3g} GB a device holds"]
    lines += [
        f"  {stage}: {each.parameters / 1e9:.3g} GB of parameters, {each.optimizer / 1e9:.3g} of optimizer, "
        f"{each.gradients / 1e9:.3g} of gradients, {_guessed(each.activations)}"
        for stage, each in held
    ]
    return "\n".join(lines)


def _candidates(mesh: Mapping[str, int], devices: int) -> list[dict[str, int]]:
    """Meshes with their open axes filled, in the order in which they are tried."""
    sizes = {axis: int(mesh.get(axis, 1)) for axis in AXES}
    within = devices // max(1, int(mesh.get(SLICES, 0)))
    ways = [way for way in range(1, within + 1) if within % way == 0]
    found = []
    for tensor in ways if sizes["tensor"] == 0 else [sizes["tensor"]]:
        for fsdp in ways if sizes["fsdp"] == 0 else [sizes["fsdp"]]:
            filled = {**sizes, "fsdp": fsdp, "tensor": tensor}
            fixed = math.prod(size for size in filled.values() if size != -1)
            filled = {axis: devices // fixed if size == -1 else size for axis, size in filled.items()}
            if fixed > 0 and math.prod(filled.values()) == devices:
                found.append(filled)
    return found


def _guessed(activations: float | None) -> str:
    return "activations not counted" if activations is None else f"about {activations / 1e9:.3g} of activations"


def _row_bytes(stage: Stage, program: Program) -> float | None:
    """Bytes that layers keep for one row, and what the largest of them works with, at a time."""
    if not has_stack(stage):
        return None
    stack, spec = video_stack(stage), encoder(stage)[1]
    trained = spec.layers - spec.frozen_layers
    keep = sum(_kept(spec, tokens + stack.global_tokens) for tokens in stack.tokens[spec.layers - trained :])
    pixels = sum(field.size * field.dtype.itemsize for field in program.fields.values()) / program.batch_size
    # Pixels come as bytes and are normalised in float32; all tokens of the grid are embedded before a mask drops some.
    stem = 9 * pixels + math.prod(stack.grid) * spec.width * 8
    # One layer at a time forward again and backward, in the layouts of compilers: of the programs in docs/scale.md.
    return float(keep + 4 * _whole(spec, max(stack.tokens)) + stem)


def _kept(spec: TransformerSpec, tokens: int) -> float:
    itemsize = np.dtype(spec.compute_dtype).itemsize
    return _whole(spec, tokens) if spec.remat == "none" else tokens * spec.width * itemsize


def _whole(spec: TransformerSpec, tokens: int) -> float:
    """All that a layer computes for one row: two norms, queries, keys, values and outputs, and the mlp twice."""
    return tokens * (8 * spec.width + 2 * spec.mlp) * float(np.dtype(spec.compute_dtype).itemsize)


def _text(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{size} {axis}" for axis, size in sizes.items() if size > 1) or "1 device"


def settle(config: Any, devices: Sequence[Any]) -> list[str]:
    """Chooses what a config's mesh leaves open, in the config itself, and tells what each device will hold.

    Nothing is told where the memory of the devices is not known and nothing is to be chosen.
    """
    recipe, memory = read_recipe(config), memory_of(devices[0])
    if is_open(recipe.mesh):
        if memory is None:
            raise ValueError(
                f"how much memory a device {devices[0].device_kind!r} has is not known, so no mesh can be chosen for "
                "it; give mesh.fsdp and mesh.tensor sizes from 1 on"
            )
        sizes, held = choose(recipe, len(devices), memory)
        with config.unlocked():
            config.mesh = sizes
        return describe(sizes, held, memory).splitlines()
    if memory is None:
        return []
    sizes = dict(make_mesh(recipe.mesh, devices).shape)
    needs = [need_of(recipe, index) for index in range(len(recipe.stages))]
    return describe(sizes, [(need.stage, need.held(sizes)) for need in needs], memory).splitlines()
