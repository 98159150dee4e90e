"""Full-size recipes compiled for pods without a TPU: they fit, and exchange what their mesh implies and no more.

Compiling all of them takes most of an hour, so it is done by `make pods`, which keeps a row for each in
benchmarks/pods.json. Tests hold that file to the recipes as they stand, and compile the few of `SMALL` anew, on four
chips with the same clips a chip.
"""

import dataclasses
import importlib
import inspect

import pytest

from benchmarks._pods import EFFORT, PODS, fingerprint, is_sound, read_rows, recipe_of, sizes_of, table, whole_mesh
from vidlang.cost.cards import CARDS
from vidlang.cost.exchanges import exchanges, total
from vidlang.cost.program import build_program
from vidlang.cost.scale import unexpected
from vidlang.cost.shape import shape_of
from vidlang.cost.targets import Target, measure

CHIPS = "v5e:2x2"
BY_NAME = {pod.name: pod for pod in PODS}
LONG = "longvivit:vit_l long"
# Rows that compile in seconds, with a mesh of four chips.
SMALL = {
    f"{LONG} dense, a clip a chip": {"data": 2, "fsdp": 2},
    f"{LONG} edges, a clip a chip": {"data": 2, "fsdp": 2},
    "videomae_k400 finetune": {"data": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), SMALL.items(), ids=SMALL)
def test_a_recipe_compiled_for_four_chips_fits_and_exchanges_what_its_mesh_implies(name, mesh, libtpu):
    sizes = sizes_of(BY_NAME[name])
    recipe, index = recipe_of(BY_NAME[name])
    clips = recipe.stages[index].batch_size // (sizes["data"] * sizes["fsdp"])
    recipe, index = recipe_of(dataclasses.replace(BY_NAME[name], mesh=mesh, batch_size=4 * clips))
    (answer,) = measure([(recipe, index)], Target("tpu", CHIPS, EFFORT))
    assert answer.total < CARDS["v5e"].memory
    sizes, shape = whole_mesh(mesh, 4), shape_of(build_program(recipe, index), recipe.stages[index])
    assert not unexpected(answer.exchanges, sizes, shape)
    assert total(exchanges(shape, sizes), sizes) == pytest.approx(sum(one.sent for one in answer.exchanges), rel=0.1)


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_every_pod_was_compiled_from_its_recipe_as_it_stands(pod):
    command = f"python -m benchmarks.pods --only='{pod.name}'"
    row = read_rows().get(pod.name)
    assert row, f"benchmarks/pods.json has no row {pod.name!r}; {command} compiles it"
    assert row["fingerprint"] == fingerprint(pod), f"{pod.name} has changed since it was compiled; {command}"
    assert is_sound(row), table([row])


def test_the_file_holds_rows_of_pods_that_are_there():
    assert set(read_rows()) <= set(BY_NAME)


def test_the_longest_clips_are_there_dense_and_with_edges():
    for name in (f"{LONG} dense, a clip a chip", f"{LONG} edges, a clip a chip"):
        recipe, index = recipe_of(BY_NAME[name])
        stage = recipe.stages[index]
        assert (stage.clip["frames"], stage.clip["size"]) == (256, 256)
        assert stage.model["video"]["transformer"]["layers"] == 24
        assert ("edges" in stage.dials) == ("edges" in name) and "mask" not in stage.dials


@pytest.mark.parametrize(
    "change",
    [
        {"topology": "v5e:8x32"},
        {"batch_size": 512},
        {"dials": {"mask": 0.5}},
        {"mesh": {"data": 256}},
        {"config": "longvivit"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_fingerprint_tells_programs_apart(change):
    pod = BY_NAME[f"{LONG} dense, a clip a chip"]
    assert fingerprint(dataclasses.replace(pod, **change)) != fingerprint(pod)


@pytest.mark.parametrize(("change", "is_another"), [({"duration": "7 steps"}, False), ({"optimizer": {}}, True)])
def test_a_fingerprint_is_of_what_decides_the_program(change, is_another, monkeypatch):
    pod = BY_NAME[LONG]
    before = fingerprint(pod)
    recipe, index = recipe_of(pod)
    stages = (*recipe.stages[:index], dataclasses.replace(recipe.stages[index], **change))
    monkeypatch.setattr("benchmarks._pods.recipe_of", lambda pod: (dataclasses.replace(recipe, stages=stages), index))
    assert (fingerprint(pod) != before) == is_another


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod.name)
def test_every_pod_names_a_stage_whose_batch_divides_over_it(pod):
    recipe, index = recipe_of(pod)
    target, sizes = Target("tpu", pod.topology), sizes_of(pod)
    assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] * sizes["context"] == target.count
    assert recipe.stages[index].batch_size % (sizes["data"] * sizes["fsdp"]) == 0
    assert target.chip in CARDS


@pytest.mark.parametrize("pod", [pod for pod in PODS if not pod.note], ids=lambda pod: pod.name)
def test_a_config_names_its_pods(pod):
    name, _, words = pod.config.partition(":")
    text = inspect.getdoc(importlib.import_module(f"configs.{name}"))
    line = next(line for line in text.splitlines() if line.startswith(("Pod: ", "Pods: ")))
    entries = line.partition(": ")[2].removesuffix(" (docs/scale.md).").split(", ")
    assert " ".join(filter(None, [words, pod.stage, "on", pod.topology])) in entries


def test_names_of_pods_are_keys():
    assert len(BY_NAME) == len(PODS)


def test_a_pod_that_does_not_fit_is_a_row_with_its_reason():
    row = {"name": "big", "pod": "v5e:2x2", "mesh": {"data": 4}, "refused": "it does not fit: Used 20G of 15.75G"}
    cells = [cell.strip() for cell in table([row]).splitlines()[-1].split("|")[1:-1]]
    assert cells == ["big", "v5e:2x2", "data 4", "", "it does not fit: Used 20G of 15.75G", "", "", ""]
    assert not is_sound(row)


@pytest.mark.parametrize(
    ("memory", "words", "fits"), [(13e9, "13", True), (15e9, "15", False), (21.9e9, "21.9, more than its 16", False)]
)
def test_a_program_beyond_the_chip_is_told_even_where_it_compiled(memory, words, fits):
    row = {"name": "big", "pod": "v5e:2x2", "mesh": {"data": 4}, "clips": 1.0, "memory": memory, "exchanges": []}
    row |= {"sent": 0.0, "counted": 0.0, "seconds": [1.0, 1.0], "own": [1.0, 1.0], "unexpected": []}
    assert table([row]).splitlines()[-1].split("|")[5].strip() == words
    assert is_sound(row) == fits and not is_sound(row | {"unexpected": [{"kind": "all-to-all"}]})
