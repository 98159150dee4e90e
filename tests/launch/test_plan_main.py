"""The planner: flags in, tables or JSON out."""

import json
from pathlib import Path

import pytest

from vidlang.cost.program import StepMemory

CONFIG = """
import ml_collections

TRANSFORMER = {"layers": 2, "width": 64, "heads": 4, "mlp": 128, "dtype": "float32", "remat": "full"}

def get_config():
    stage = {
        "name": "short",
        "duration": "4 steps",
        "batch_size": 2,
        "model": {
            "name": "dual_encoder",
            "video": {"transformer": TRANSFORMER, "tubelet": (1, 4, 4), "pool": "mean"},
            "text": {"vocab": 64, "max_length": 8, "transformer": {**TRANSFORMER, "layers": 1}, "pool": "mean"},
            "embed": 8,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        },
        "data": {"name": "synthetic", "split": "train"},
        "clip": {
            "frames": 4,
            "size": 32,
            "times": {"name": "segments"},
            "crop": {"name": "center"},
            "text_length": 8,
        },
        "tokenizer": "tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 2},
        "optimizer": {"learning_rate": 0.01},
    }
    stages = (ml_collections.ConfigDict(stage),)
    return ml_collections.ConfigDict({"name": "tiny", "seed": 0, "mesh": {"data": -1}, "stages": stages})
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny_plan.py"
    path.write_text(CONFIG)
    return f"--config={path}"


def test_a_table_has_a_line_for_each_setting_and_a_reason_for_each_refusal(launch, config):
    end = launch("launch.plan", config, "--settings=^off|^keep", "--frames=4,8", "--flops=true", "--flops=adavid")
    assert end.code == 0
    lines = end.out.splitlines()
    assert lines[0] == "stage short, 4 frames"
    assert lines[1].split() == "setting tokens GFLOP true GFLOP adavid TFLOP/step memory time".split()
    assert lines[2].split()[:2] == ["off", "256"]
    assert lines[5].startswith("keep 0.7 x 2: the dial keep ranks tokens by what the cls token attends to")
    second = lines.index("stage short, 8 frames")
    assert lines[second + 2].split()[:2] == ["off", "512"] and len(lines) == 2 * second


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--memory=16GB"], "--memory and --card are about compiled steps; add --target"),
        (["--target=abacus"], "unknown target 'abacus'; there are cpu, cpu:DEVICES, gpu or tpu:TOPOLOGY"),
        (["--target=cpu:many"], "cpu:DEVICES takes a number of devices"),
        (["--target=gpu"], "the target gpu needs a GPU that JAX uses, and here it uses cpu"),
        (["--target=cpu", "--memory=16 parsecs"], "--memory takes a size like 16GB"),
        (["--target=cpu", "--card=H1000"], "unknown card 'H1000' (did you mean 'H100'?)"),
        (["--frames=16,many"], "--frames takes numbers of frames, as in 16,64; found 'many'"),
        (["--stages=long"], "--stages names 'long'; the stages are short"),
        (["--utilisation=40"], "--utilisation is a share"),
    ],
)
def test_a_wrong_flag_is_one_sentence(launch, config, flags, words):
    end = launch("launch.plan", config, *flags)
    assert end.code == 2 and words in end.err and end.err.count("\n") == 1


@pytest.mark.slow
def test_several_devices_tell_what_they_send_and_how_much_is_their_own_work(launch, config):
    flags = ["--settings=^off$", "--batch_size=8", "--target=cpu:4", "--card=H100", "--json"]
    end = launch("launch.plan", config, *flags)
    assert end.code == 0
    (row,) = json.loads(end.out)
    kinds = {each["kind"]: each for each in row["exchanges"]}
    assert kinds["all-reduce"]["groups_of"] == 4 and kinds["all-reduce"]["bytes"] > 4 * row["parameters"] * 0.95
    assert 0 < row["own"][0] < row["own"][1] <= 1


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [([], "does not fit 16 GB"), (["--memory=20GB"], "does not fit 20 GB"), (["--memory=22GB"], "fits, computes most")],
)
def test_a_step_beyond_the_chip_is_told_although_the_compiler_made_it(
    launch, config, libtpu, monkeypatch, flags, verdict
):
    made = StepMemory(int(5e9), int(5e9), int(5e9), int(16.9e9), devices=4)
    monkeypatch.setattr("vidlang.cost.table.measure", lambda jobs, target: iter([made] * len(jobs)))
    end = launch("launch.plan", config, "--settings=^off$", "--batch_size=8", "--target=tpu:v5e:2x2", *flags)
    assert end.code == 0 and end.out.splitlines()[2].endswith(f"  {verdict}") and "21.9 GB" in end.out


@pytest.fixture
def open_config(config):
    path = Path(config.removeprefix("--config="))
    path.write_text(path.read_text().replace('"mesh": {"data": -1}', '"mesh": {"data": -1, "fsdp": 0, "tensor": 1}'))
    return config


@pytest.mark.slow
def test_open_axes_are_chosen_by_memory_and_told(launch, open_config):
    flags = ["--settings=^off$", "--batch_size=8", "--target=cpu:4", "--memory=1GB"]
    end = launch("launch.plan", open_config, *flags)
    assert end.code == 0 and end.out.startswith("mesh 4 data; of 1 GB a device holds\n  short: ")


@pytest.mark.parametrize(
    ("flag", "words"), [("--memory=1KB", "does not fit 4 devices"), (None, "add --memory=16GB or --card=v5e")]
)
def test_open_axes_that_cannot_be_chosen_are_one_sentence(launch, open_config, flag, words):
    flags = ["--settings=^off$", "--batch_size=8", "--target=cpu:4", *filter(None, [flag])]
    end = launch("launch.plan", open_config, *flags)
    assert end.code == 2 and words in end.err and end.err.count("\n") == 1


@pytest.mark.slow
def test_memory_grows_linearly_with_frames_along_edges_and_with_their_square_without(launch, config):
    flags = ["--frames=32,64", "--settings=^off|edges .1, 3, 56.$", "--batch_size=1"]
    end = launch("launch.plan", config, *flags, "--target=cpu", "--card=H100", "--memory=300MB", "--json")
    assert end.code == 0
    off, edges, later_off, later_edges = json.loads(end.out)
    assert (off["setting"], off["frames"], later_edges["setting"]) == ("off", 32, "edges (1, 3, 56)")
    assert later_edges["memory"] / edges["memory"] == pytest.approx(2.0, abs=0.1)
    assert later_off["memory"] / off["memory"] > 3.7
    assert later_edges["seconds"] < later_off["seconds"]
    assert [row["fits"] for row in (off, edges, later_off, later_edges)] == [True, True, False, True]
    assert [row["best"] for row in (off, edges, later_off, later_edges)] == [True, False, False, True]
