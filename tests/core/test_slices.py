"""Meshes over several slices: which devices lie where, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh
from vidlang.core.slices import across, check_slices, count_slices


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU as far as slices are concerned."""

    id: int
    slice_index: int
    platform: str = "tpu"
    process_index: int = 0


def chips(*of_slices):
    return [Chip(i, each) for i, each in enumerate(of_slices)]


def plain(shape, group):
    return np.array(group, dtype=object).reshape(shape)


def test_fsdp_never_crosses_a_slice():
    mesh = make_mesh({"data": -1, "fsdp": 2, "slices": 2})
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "context": 1}
    halves = [{device.id for device in part.flat} for part in np.split(mesh.devices, 2)]
    assert halves == [{device.id for device in jax.devices()[:4]}, {device.id for device in jax.devices()[4:]}]


def test_chips_lie_by_the_slice_that_they_tell():
    devices = chips(1, 0, 1, 0, 1, 0, 1, 0)
    order = across(2, (4, 2, 1, 1), devices, plain)
    assert order.shape == (4, 2, 1, 1)
    assert [device.slice_index for device in order.flat] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("devices", "wanted", "found"),
    [(chips(0, 0, 1, 1), 0, 2), (chips(0, 0, 1, 1), 2, 2), (chips(0, 0), 0, 1), (None, 0, 1), (None, 4, 4)],
)
def test_tpus_know_their_slices_and_others_are_told(devices, wanted, found):
    assert count_slices(jax.devices() if devices is None else devices, wanted) == found


def test_a_mesh_computes_the_same_over_slices():
    x = np.arange(16, dtype=np.float32)
    sums = []
    for sizes in ({"data": 8}, {"data": 8, "slices": 4}):
        mesh = make_mesh(sizes)
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        sums.append(float(jax.jit(lambda x: (x * x).sum())(spread)))
    assert sums[0] == sums[1] == (x * x).sum()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": -1, "slices": 3}, "mesh.slices is 3, which does not divide the 8 devices"),
        ({"fsdp": 8, "slices": 2}, "'data' is 1, which does not divide over 2 slices"),
        ({"data": 8, "slices": -1}, "mesh.slices is the number of slices, from 1 on"),
    ],
)
def test_slices_that_do_not_fit_are_one_sentence(sizes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(sizes)


def test_a_config_may_not_say_other_slices_than_the_chips_do():
    with pytest.raises(ValueError, match="mesh.slices is 4, and the 4 TPU chips here are in 2 slices"):
        count_slices(chips(0, 0, 1, 1), 4)
    check_slices(2, (4, 2, 1, 1), 8)
