"""The train step of a stage as a program: built in shapes from its config, as `train` would build it, and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from vidlang.core.config import steps
from vidlang.core.sharding import Mesh, batch_ways, use_mesh
from vidlang.cost import collectives
from vidlang.cost.collectives import Collective
from vidlang.cost.trace import matmul_flops
from vidlang.data.fields import expected_field
from vidlang.ops.dials import streams
from vidlang.train import sources
from vidlang.train.check import MANY
from vidlang.train.program import Program, stage_program
from vidlang.train.recipe import Recipe
from vidlang.train.step import pick_inputs, with_moments, with_video


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one device needs for a train step: what goes in, what comes out, and what lives between.

    aliased: of the outputs, those that take the place of arguments. devices: how many share the step. This is the
    compiler's plan, not a measurement: the process itself, and a second batch on its way to the device, come on top.
    exchanges: what the devices send each other in the step.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    devices: int = 1
    exchanges: tuple[Collective, ...] = ()

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    @property
    def traffic(self) -> int:
        """Bytes that cross the memory bus at least: arguments read, outputs written, temporaries both."""
        return self.arguments + self.outputs + 2 * self.temporaries


def build_program(recipe: Recipe, index: int) -> Program:
    """The program of a stage; data is read only where the objective wants columns of its tables.

    Of a mixture whose sources have clips of different shapes, it is that of the largest clips.
    """
    stage = recipe.stages[index]
    wants_columns = not all(expected_field(name) for spec in sources.specs(stage) for name in spec.fields)
    shapes = sources.batch_fields(stage, sources.tables(stage) if wants_columns else None).values()
    fields = max(shapes, key=lambda fields: max(field.size for field in fields.values()))
    total = steps(stage.duration, batch_size=stage.batch_size, dataset_size=MANY)
    return stage_program(recipe, index, fields, total)


def forward_flops(program: Program) -> float:
    """Operations of the model's forward pass with the stage's dials, for one clip with its text."""

    def forward(params: Any, batch: Any, key: jax.Array) -> Any:
        batch = with_video(batch)
        inputs = pick_inputs(program.model, batch)
        options: dict[str, Any] = dict(train=True, dials=program.dials, rngs=streams(key))
        outputs = program.model.apply({"params": params}, *inputs, **options)
        return jax.tree.leaves(outputs)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return matmul_flops(forward, program.params, dict(program.fields), key) / program.batch_size


def step_flops(program: Program) -> int:
    """Operations of a whole train step, of all devices: forward, backward, and what is computed again on the way."""
    state = jax.eval_shape(lambda params: with_moments(params, program.optimizer), program.params)
    return matmul_flops(program.step, state, dict(program.fields))


def step_memory(program: Program, mesh: Mesh) -> StepMemory:
    """Memory of the step compiled for this mesh, on each of its devices; nothing is run."""
    ways = batch_ways(mesh)
    if program.batch_size % ways:
        raise ValueError(
            f"batch_size {program.batch_size} does not divide over the {ways} devices of the mesh axes data and fsdp; "
            "choose a multiple"
        )
    with use_mesh(mesh):
        return memory_of(program.compile(mesh), mesh)


def memory_of(compiled: Any, mesh: Mesh) -> StepMemory:
    """Memory of a compiled step on each device of its mesh."""
    found = compiled.memory_analysis()
    return StepMemory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        mesh.size,
        tuple(collectives.read(compiled.as_text())) if mesh.size > 1 else (),
    )
