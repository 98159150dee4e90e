"""Full-size recipes compiled for small pods without a TPU: they fit, and exchange what their mesh implies and no more.

`python -m benchmarks.pods` does this for every recipe on the pod that it is meant for; its table is in docs/scale.md.
"""

import dataclasses

import pytest

from benchmarks._pods import PODS, recipe_of, table, whole_mesh
from vidlang.cost.cards import CARDS
from vidlang.cost.exchanges import exchanges, shape_of, total
from vidlang.cost.program import build_program
from vidlang.cost.scale import unexpected
from vidlang.cost.targets import Target, measure

SMALL = "v5e:2x2"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "mesh", "batch"), [(3, {"data": 2, "fsdp": 2}, 4)], ids=["edges"])
def test_longvivit_l_of_256_frames_fits_a_chip_and_exchanges_what_its_mesh_implies(number, mesh, batch, libtpu):
    recipe, index = recipe_of(dataclasses.replace(PODS[number], mesh=mesh, batch_size=batch))
    stage = recipe.stages[index]
    assert (stage.clip["frames"], stage.clip["size"], stage.model["video"]["transformer"]["layers"]) == (256, 256, 24)
    (answer,) = measure([(recipe, index)], Target("tpu", SMALL))
    assert answer.total < CARDS["v5e"].memory / 2
    sizes, shape = whole_mesh(mesh, 4), shape_of(build_program(recipe, index), stage)
    assert not unexpected(answer.exchanges, sizes, shape.pair_bytes)
    assert total(exchanges(shape, sizes), sizes) == pytest.approx(sum(one.sent for one in answer.exchanges), rel=0.1)


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_every_pod_names_a_stage_whose_batch_divides_over_it(pod):
    recipe, index = recipe_of(pod)
    target = Target("tpu", pod.topology)
    sizes = whole_mesh(pod.mesh, target.count)
    assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] * sizes["context"] == target.count
    assert recipe.stages[index].batch_size % (sizes["data"] * sizes["fsdp"]) == 0
    assert recipe.mesh == pod.mesh and target.chip in CARDS


def test_names_of_pods_are_keys():
    assert len({pod.name for pod in PODS}) == len(PODS)


def test_a_pod_that_does_not_fit_is_a_row_with_its_reason():
    row = {"name": "big", "pod": "v5e:2x2", "mesh": {"data": 4}, "refused": "it does not fit: Used 20G of 15.75G"}
    cells = [cell.strip() for cell in table([row]).splitlines()[-1].split("|")[1:-1]]
    assert cells == ["big", "v5e:2x2", "data 4", "", "it does not fit: Used 20G of 15.75G", "", "", ""]


@pytest.mark.parametrize(("memory", "words"), [(15e9, "15"), (21.9e9, "21.9, more than its 16")])
def test_a_program_beyond_the_chip_is_told_even_where_it_compiled(memory, words):
    row = {"name": "big", "pod": "v5e:2x2", "mesh": {"data": 4}, "clips": 1.0, "memory": memory, "exchanges": []}
    row |= {"sent": 0.0, "counted": 0.0, "seconds": [1.0, 1.0], "own": [1.0, 1.0]}
    assert table([row]).splitlines()[-1].split("|")[5].strip() == words
