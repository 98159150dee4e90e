"""Memory of compiled train steps: what the LongViViT paper claims of its two savings, and what a mesh divides."""

import dataclasses

import pytest

from vidlang.cost.program import StepMemory
from vidlang.cost.settings import Setting, apply
from vidlang.cost.targets import Refused, Target, measure, read_target

VIT_B = {"layers": 12, "width": 768, "heads": 12, "mlp": 3072, "dtype": "bfloat16"}
MASKED = {"mask": 0.75}


def vit_b(recipe, setting, frames):
    """ViT-B on 256 pixels with tubelets of 2 x 16 x 16 beside BERT-medium, one clip a step, nothing recomputed."""
    video = {"transformer": VIT_B, "tubelet": (2, 16, 16), "pool": "mean"}
    words = {"layers": 8, "width": 512, "heads": 8, "mlp": 2048, "dtype": "bfloat16"}
    text = {"vocab": 30_528, "max_length": 32, "transformer": words, "pool": "mean"}
    base = recipe(batch_size=1)
    stage = base.stages[0]
    model = {**stage.model, "video": video, "text": text, "embed": 256}
    stage = dataclasses.replace(stage, model=model, clip={**stage.clip, "size": 256})
    return dataclasses.replace(base, stages=(apply(stage, setting, frames=frames),)), 0


def totals(*jobs):
    return [answer.total for answer in measure(jobs, Target("cpu"))]


@pytest.mark.slow
def test_masking_three_quarters_at_16_frames_saves_the_papers_two_to_three_times(recipe):
    whole, masked = totals(vit_b(recipe, Setting("off"), 16), vit_b(recipe, Setting("mask", MASKED), 16))
    assert 2.0 < whole / masked < 3.2


@pytest.mark.slow
def test_training_the_last_four_layers_at_128_frames_saves_a_further_near_three_and_fits_16_gb(recipe):
    jobs = (vit_b(recipe, Setting("mask", MASKED, last), 128) for last in (0, 4))
    masked, last = totals(*jobs)
    assert 2.3 < masked / last < 3.5
    assert last < 16e9 < masked


@pytest.mark.slow
def test_devices_share_the_batch_and_the_parameters(recipe):
    """On four devices a step's temporaries are those of a quarter of the batch; fsdp also divides the state."""

    def on(devices, *meshes):
        return measure(
            [(dataclasses.replace(recipe(frames=16), mesh=mesh), 0) for mesh in meshes], Target("cpu", devices)
        )

    (alone,), (data, fsdp) = on("1", {"data": 1}), on("4", {"data": 4}, {"fsdp": 4})
    assert (alone.devices, data.devices) == (1, 4)
    assert data.temporaries < 0.5 * alone.temporaries
    assert fsdp.arguments < 0.5 * data.arguments


@pytest.mark.slow
def test_a_pod_that_nobody_has_compiles_the_step(recipe, libtpu):
    found = list(measure([(dataclasses.replace(recipe(), mesh={"data": 2, "fsdp": 2}), 0)], Target("tpu", "v5e:2x2")))
    assert found[0].devices == 4 and found[0].temporaries > 0
    with pytest.raises(ValueError, match="no TPU topology 'v5e:3x5'"):
        list(measure([(recipe(), 0)], Target("tpu", "v5e:3x5")))


@pytest.mark.slow
def test_what_no_mesh_can_take_is_a_reason_not_an_end(recipe):
    small = recipe()
    uneven = dataclasses.replace(small, stages=(dataclasses.replace(small.stages[0], batch_size=3),))
    other = dataclasses.replace(small, mesh={"data": 3})
    found = list(measure([(uneven, 0), (other, 0)], Target("cpu", "2")))
    assert all(isinstance(answer, Refused) for answer in found)
    assert "batch_size 3 does not divide over the 2 devices" in found[0].reason
    assert "does not divide the 2 devices" in found[1].reason


def test_a_tpu_needs_its_compiler_only(monkeypatch):
    monkeypatch.setattr("vidlang.cost.targets.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vidlang\[plan\]'"):
        read_target("tpu:v5e:2x2")
    monkeypatch.setattr("vidlang.cost.targets.importlib.util.find_spec", lambda name: object())
    assert read_target("tpu:v5e:2x2").chip == "v5e"


def test_memory_counts_what_takes_the_place_of_arguments_once():
    memory = StepMemory(arguments=100, outputs=90, aliased=80, temporaries=7)
    assert (memory.total, memory.traffic) == (117, 204)
