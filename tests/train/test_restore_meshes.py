"""A checkpoint of eight devices goes on, on any mesh of fewer or of others, with the training it would have had."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh, put_batch, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.program import stage_program
from vidlang.train.recipe import CheckpointPlan, Recipe
from vidlang.train.saved import make_note

BEFORE, AFTER = 2, 5
# Where the checkpoint is from, and where it goes on: (mesh, number of devices).
FROM = [{"data": 8}, pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.slow)]
TO = [({"data": 1}, 1), ({"fsdp": 2}, 2), ({"data": 2, "tensor": 2}, 4), ({"data": 2, "fsdp": 4}, 8)]


@dataclasses.dataclass
class Training:
    """The tiny model and its optimizer on a mesh: a state, and steps of it."""

    stage: Any
    fields: Any
    mesh: Any

    def __post_init__(self):
        recipe = Recipe("tiny", 0, (self.stage,))
        self.program = stage_program(recipe, 0, self.fields, BEFORE + AFTER)

    def fresh(self):
        return self.program.born(self.mesh, 0)

    def abstract(self):
        return self.program.state(self.mesh)

    def run(self, state, batches):
        """(the state after these batches, the loss of each)."""
        step, losses = self.program.compile(self.mesh), []
        for batch in batches:
            state, scalars = step(state, put_batch(batch, self.mesh))
            losses.append(float(scalars["loss"]))
        return state, losses


@pytest.fixture(scope="module")
def batches(host_batch):
    return [host_batch(number) for number in range(BEFORE + AFTER)]


@pytest.fixture(scope="module")
def training(stage, fields):
    def make(sizes, devices):
        return Training(stage(), fields, make_mesh(sizes, jax.devices()[:devices]))

    return make


@pytest.fixture(scope="module", params=FROM, ids=str)
def saved(request, training, batches, fields, tmp_path_factory):
    """(folder of a checkpoint after two steps on eight devices, what the next five gave there)."""
    folder, one = tmp_path_factory.mktemp("saved"), training(request.param, 8)
    with use_mesh(one.mesh), in_folder(folder, fields) as checkpoints:
        state, _ = one.run(one.fresh(), batches[:BEFORE])
        checkpoints.save(BEFORE, state, None)
        checkpoints.wait()
        state, losses = one.run(state, batches[BEFORE:])
    return folder, jax.device_get(state), losses


def in_folder(folder, fields):
    note = make_note({"seed": 0, "stages": ({"name": "short"},)}, 0, fields, {})
    return opened(Checkpoints(folder, CheckpointPlan(), note))


@pytest.mark.parametrize(("sizes", "devices"), TO, ids=str)
def test_the_next_five_steps_are_those_of_the_mesh_it_was_saved_on(saved, training, batches, fields, sizes, devices):
    folder, expected, expected_losses = saved
    other = training(sizes, devices)
    with use_mesh(other.mesh), in_folder(folder, fields) as checkpoints:
        state = checkpoints.restore(other.abstract())
        assert int(state.step) == BEFORE
        assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(state)} == {devices}
        matrix = flatten_paths(state.params)["video_in"]
        ways = sizes.get("fsdp", 1)
        assert matrix.addressable_shards[0].data.shape[0] * ways == matrix.shape[0]
        state, losses = other.run(state, batches[BEFORE:])
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert len(set(losses)) == AFTER
    found = flatten_paths(jax.device_get(state))
    for name, leaf in flatten_paths(expected).items():
        # Adam divides by the root of the moment: where that is all rounding, so is the quotient.
        np.testing.assert_allclose(found[name], leaf, rtol=2e-4, atol=2e-5, err_msg=name)
