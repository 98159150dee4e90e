"""What a stage computes, as a program in shapes that is not compiled yet: its model, optimizer, state and step.

Reading the step of a large model takes Python longer than many a step takes a chip. So what is traced to check a recipe
before anything is read, is compiled afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax

from vidlang.core.config import call
from vidlang.core.sharding import Mesh
from vidlang.ops.dials import Dials
from vidlang.train import build
from vidlang.train.optimizer import Optimizer, make_optimizer
from vidlang.train.recipe import Recipe, Stage
from vidlang.train.step import Fields, TrainState, abstract_boxed, create_state, state_shardings, trace_step


@dataclass(frozen=True)
class Program:
    """The program of a stage, on whatever mesh.

    boxed: the parameters as shapes, in their boxes of logical names. fields: of the batch that parameters are made for.
    total: how many steps the stage has.
    """

    model: nn.Module
    optimizer: Optimizer
    step: Callable[..., Any]
    dials: Dials
    boxed: Any
    fields: Fields
    total: int
    _traced: dict[tuple[Mesh, str], jax.stages.Traced] = field(default_factory=dict)

    @property
    def params(self) -> Any:
        """The parameters as shapes."""
        return nn.unbox(self.boxed)

    @property
    def batch_size(self) -> int:
        """Clips of a step, on all devices together."""
        return int(next(iter(self.fields.values())).shape[0])

    def is_of(self, fields: Fields, total: int) -> bool:
        """Whether another such batch and number of steps makes it the same program, in the same stage of a recipe."""
        return self.total == total and dict(self.fields) == dict(fields)

    def state(self, mesh: Mesh) -> TrainState:
        """The state before a step, as shapes, dtypes and shardings."""
        return state_shardings(self.boxed, self.optimizer, mesh)[0]

    def born(self, mesh: Mesh, seed: int, *, blank: Collection[str] = ()) -> TrainState:
        """A fresh state; `blank` as in `create_state`."""
        return create_state(self.model, self.optimizer, self.fields, mesh, seed, blank=blank, boxed=self.boxed)

    def traced(self, mesh: Mesh, fields: Fields | None = None) -> jax.stages.Traced:
        """The step as Python wrote it, for its own batch or another; done once. In the mesh, like all that computes."""
        fields = self.fields if fields is None else fields
        key = mesh, repr(sorted(fields.items()))
        if key not in self._traced:
            self._traced[key] = trace_step(self.step, self.state(mesh), fields, mesh)
        return self._traced[key]

    def compile(self, mesh: Mesh, fields: Fields | None = None) -> jax.stages.Compiled:
        """The step compiled; it consumes the state that it is given."""
        return self.traced(mesh, fields).lower().compile()


def stage_program(recipe: Recipe, index: int, fields: Fields, total: int) -> Program:
    """The program of the stage with this number, of `total` steps."""
    stage = recipe.stages[index]
    model = build.model(stage)
    boxed = abstract_boxed(model, fields)
    optimizer = _optimizer(model, nn.unbox(boxed), stage, total)
    step = build.train_step(recipe, index, model, optimizer)
    return Program(model, optimizer, step, build.dials(stage), boxed, fields, total)


def _optimizer(model: nn.Module, params: Any, stage: Stage, total: int) -> Optimizer:
    counts = {"total_steps": total, "batch_size": stage.batch_size}
    own = getattr(model, "frozen", {})
    return call(make_optimizer, stage.optimizer, what="optimizer", params=params, freeze_rows=own, **counts)
