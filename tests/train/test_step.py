"""A step is the same on every mesh, really sharded, a function of (seed, step), and leaves frozen leaves alone."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from vidlang.core.sharding import put_batch, use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train import build
from vidlang.train.program import stage_program
from vidlang.train.recipe import Recipe
from vidlang.train.step import device_fields, pick_inputs


@dataclasses.dataclass
class Run:
    """What some steps did: host arrays before and after, the scalars of each step, and what one device held."""

    before: Any
    after: Any
    history: list[dict[str, float]]
    bytes_per_device: int


@pytest.fixture(scope="module")
def run_steps(stage, fields, host_batch):
    """Runs steps of a stage on a mesh, each on another batch unless `batch` is given; equal questions are run once."""
    known = {}

    def run(mesh, steps=1, seed=0, batch=None, **changes):
        question = repr((mesh, steps, seed, batch, changes))
        if question not in known:
            known[question] = compute(mesh, steps, seed, batch, stage(**changes))
        return known[question]

    def compute(mesh, steps, seed, batch, chosen):
        program = stage_program(Recipe("tiny", seed, (chosen,)), 0, fields, 4)
        with use_mesh(mesh):
            state, step = program.born(mesh, seed), program.compile(mesh)
            abstract = program.state(mesh)
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, abstract)
            leaves = jax.tree.leaves((state.params, state.opt_state))
            size = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
            before, history = jax.device_get(state), []
            for number in range(steps):
                state, scalars = step(state, put_batch(host_batch(number if batch is None else batch), mesh))
                history.append({name: float(value) for name, value in scalars.items()})
        return Run(before, jax.device_get(state), history, size)

    return run


# Plain descent by the gradient (Adam's first update hides it): with b1 = 0 the first moment is the gradient itself.
PLAIN = {"learning_rate": 1.0, "schedule": "constant", "clip_norm": None, "b1": 0.0, "b2": 0.0, "eps": 1e6}
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="module")
def alone(run_steps, mesh_of):
    return run_steps(mesh_of(), optimizer=PLAIN)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradients_are_those_of_one_device(run_steps, alone, mesh_of, sizes):
    assert_same_training(run_steps(mesh_of(**sizes), optimizer=PLAIN), alone)


@pytest.mark.slow
def test_the_real_model_trains_the_same_on_every_mesh(run_steps, dual_encoder, mesh_of):
    # The mesh {"data": 8} only cuts the batch, as the other two do: the small model is tested on it.
    alone, fsdp, mixed = (
        run_steps(mesh_of(**sizes), optimizer=PLAIN, model=dual_encoder) for sizes in ({}, *MESHES[1:])
    )
    for run in (fsdp, mixed):
        assert_same_training(run, alone)
    assert fsdp.bytes_per_device < alone.bytes_per_device / 4
    assert mixed.bytes_per_device < alone.bytes_per_device / 2.5


def assert_same_training(got, want):
    """Equal parameters at first, then equal loss, metrics and gradients."""
    for name, leaf in flatten_paths(want.before.params).items():
        np.testing.assert_array_equal(leaf, flatten_paths(got.before.params)[name], err_msg=name)
    for name in ("loss", "grad_norm", "accuracy_t2v"):
        np.testing.assert_allclose(got.history[0][name], want.history[0][name], rtol=1e-5, err_msg=name)
    moments = {name: leaf for name, leaf in flatten_paths(want.after.opt_state).items() if "/mu/" in name}
    assert len(moments) == len(flatten_paths(want.after.params))
    largest = max(np.abs(leaf).max() for leaf in moments.values())
    for name, leaf in moments.items():
        # Biases of keys have no gradient but rounding: it is small against the others, not against itself.
        scale = np.abs(leaf).max() + 0.1 * largest
        np.testing.assert_allclose(flatten_paths(got.after.opt_state)[name], leaf, atol=1e-5 * scale, err_msg=name)
        assert np.abs(leaf).max() > 0, name


def test_parameters_and_moments_are_really_sharded(run_steps, alone, mesh_of):
    data, fsdp, mixed = (run_steps(mesh_of(**sizes), optimizer=PLAIN).bytes_per_device for sizes in MESHES)
    assert data == alone.bytes_per_device
    assert fsdp < alone.bytes_per_device / 6
    assert mixed < alone.bytes_per_device / 1.9


def test_masks_are_a_function_of_seed_and_step(run_steps, mesh_of):
    # The same clips and a learning rate of zero: only the mask can tell two steps apart.
    still = {"mesh": mesh_of(), "batch": 0, "optimizer": {"learning_rate": 0.0}}
    first, second = (scalars["loss"] for scalars in run_steps(**still, steps=2).history)
    assert first != second
    assert first == run_steps(**still, steps=1).history[0]["loss"]


def test_frozen_parameters_stay_bit_for_bit(run_steps, mesh_of):
    options = {"learning_rate": 0.1, "weight_decay": 0.1, "freeze": ("^video_",)}
    run = run_steps(mesh_of(data=8), steps=3, optimizer=options)
    for name, leaf in flatten_paths(run.before.params).items():
        same = np.array_equal(leaf, flatten_paths(run.after.params)[name])
        assert same == name.startswith("video_"), name
    assert not [name for name in flatten_paths(run.after.opt_state) if "video_" in name]
    assert int(run.after.step) == 3
    assert set(run.history[0]) == {"loss", "scale", "accuracy_t2v", "accuracy_v2t", "grad_norm", "learning_rate"}


def test_a_missing_batch_field_names_those_there(stage):
    model = build.model(stage())
    with pytest.raises(ValueError, match=r"batch fields video_BTHWC, text_BL.*no text_BL; it has: video_BTHWC"):
        pick_inputs(model, {"video_BTHWC": 0, "label_B": 0})


def test_a_mesh_that_does_not_divide_a_parameter_names_it(stage, fields, mesh_of):
    program = stage_program(Recipe("tiny", 0, (stage(model={"name": "tiny", "width": 15}),)), 0, fields, 4)
    with pytest.raises(ValueError, match=r"parameter params/text_out .*15 does not divide over.*tensor"):
        program.state(mesh_of(data=4, tensor=2))


def test_only_what_devices_need_reaches_them():
    batch = {"index_B": np.arange(2), "broken_B": np.arange(2), "text_BL": np.zeros((2, 3), np.int32)}
    kept = device_fields(batch)
    assert set(kept) == {"index_B", "text_BL"} and kept["index_B"].dtype == np.int32
