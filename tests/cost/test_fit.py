"""Sizes of a mesh that a config leaves open: what a device holds against what is compiled, and the rule."""

import dataclasses
import types

import jax
import ml_collections
import pytest

from vidlang.core.sharding import make_mesh
from vidlang.cost import fit
from vidlang.cost.program import build_program, step_memory

WIDER = {"layers": 4, "width": 128, "heads": 4, "mlp": 512, "remat": "full"}
OPEN = {"data": -1, "fsdp": 0, "tensor": 0}


@pytest.fixture
def small(recipe):
    """One stage, whose mesh is left open."""
    return dataclasses.replace(recipe(transformer=WIDER), mesh=OPEN)


def state(held):
    return held.parameters + held.optimizer


@pytest.mark.slow
def test_what_a_device_holds_of_the_state_is_what_the_compiled_step_is_given(small):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    arguments = step_memory(build_program(small, 0), make_mesh(mesh)).arguments
    assert state(fit.need_of(small, 0).held(mesh)) == pytest.approx(arguments, rel=0.05)  # and the batch


def test_fsdp_grows_before_tensor_and_no_further_than_it_must(small):
    need = fit.need_of(small, 0)

    def chosen(sizes):
        held = need.held({"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes).total
        return fit.choose(small, 8, held / fit.FILLED)[0]

    assert chosen({"data": 8}) == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    assert chosen({"data": 2, "fsdp": 4}) == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    full = need.held({"data": 8, "fsdp": 1, "tensor": 1, "context": 1}).total
    assert fit.choose(small, 8, full)[0]["fsdp"] > 1  # some of the memory stays free
    # Two rows leave no more than two ways of fsdp: only tensor can take the other devices.
    few = dataclasses.replace(small, stages=(dataclasses.replace(small.stages[0], batch_size=2),))
    assert fit.choose(few, 8, 1e12)[0] == {"data": 2, "fsdp": 1, "tensor": 4, "context": 1}


def test_what_never_fits_says_what_comes_nearest_and_what_would_help(small):
    with pytest.raises(ValueError, match=r"stage 'short' does not fit 8 devices of 1e-06 GB: .* Take more devices"):
        fit.choose(small, 8, 1e3)
    uneven = dataclasses.replace(small, stages=(dataclasses.replace(small.stages[0], batch_size=7),))
    with pytest.raises(ValueError, match="divide the batch and the widths"):
        fit.choose(uneven, 8, 1e12)


def test_open_axes_stay_within_a_slice(small):
    sizes = fit.choose(dataclasses.replace(small, mesh=OPEN | {"slices": 2}), 8, 1e12)[0]
    assert sizes["slices"] == 2 and sizes["data"] == 8
    assert max(each["fsdp"] * each["tensor"] for each in fit._candidates(OPEN | {"slices": 4}, 8)) == 4


def test_a_config_gets_its_sizes_and_the_log_its_lines(small, monkeypatch):
    stage = ml_collections.ConfigDict(dataclasses.asdict(small.stages[0]))
    config = ml_collections.ConfigDict({"name": "a", "seed": 0, "mesh": OPEN, "stages": (stage,)}).lock()
    monkeypatch.setattr(fit, "memory_of", lambda device: 16e9)
    lines = fit.settle(config, jax.devices())
    assert config.mesh.to_dict() == {"data": 8, "fsdp": 1, "tensor": 1, "context": 1} and config.is_locked
    assert lines[0] == "mesh 8 data; of 16 GB a device holds" and "GB of parameters" in lines[1]
    assert fit.settle(config, jax.devices()) == lines  # nothing is open any more, and it is told all the same
    monkeypatch.undo()
    assert fit.settle(config, jax.devices()) == []  # CPUs tell no memory


def test_memory_is_what_a_device_tells_or_its_name_says():
    def device(platform, kind, stats=None):
        return types.SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda: stats)

    assert fit.memory_of(device("gpu", "some GPU", {"bytes_limit": 7})) == 7
    assert fit.memory_of(device("tpu", "TPU v5 lite")) == 16e9
    assert fit.memory_of(device("cpu", "cpu", {"bytes_limit": 7})) is None
    assert fit.memory_of(device("gpu", "some GPU")) is None


def test_nothing_is_chosen_for_devices_of_unknown_memory(small):
    stage = ml_collections.ConfigDict(dataclasses.asdict(small.stages[0]))
    config = ml_collections.ConfigDict({"name": "a", "seed": 0, "mesh": OPEN, "stages": (stage,)})
    with pytest.raises(ValueError, match="how much memory a device 'cpu' has is not known"):
        fit.settle(config, jax.devices())
