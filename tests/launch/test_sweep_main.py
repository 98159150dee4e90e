"""One trained model at several widths, from the command line."""

import json
import runpy
from xml.etree import ElementTree

import jax.numpy as jnp
import pytest

from vidlang.core.config import to_dict
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.train import build, sources
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.predict import Predict
from vidlang.train.recipe import read_recipe
from vidlang.train.run_files import write_json
from vidlang.train.saved import make_note
from vidlang.train.step import TrainState, init_params

TRANSFORMER = {"layers": 4, "width": 32, "heads": 4, "mlp": 64, "dtype": "float32"}
MODEL = {
    "name": "dual_encoder",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8), "pool": "mean"},
    "text": {"vocab": 128, "max_length": 8, "transformer": {**TRANSFORMER, "layers": 1}, "pool": "mean"},
    "embed": 8,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}


@pytest.fixture
def run(tiny_config, tmp_path):
    """A run's folder as a training leaves it, but for the training: compiling that takes most of a minute."""
    path, root = tiny_config.removeprefix("--config=").rsplit(":", 1)
    config = to_dict(runpy.run_path(path)["get_config"](root))
    (stage,) = config["stages"]
    (evaluation,) = stage["evals"]
    twice = {**evaluation, "name": "multiple_choice", "prefix": "order", "clip": {**evaluation["clip"], "views": 2}}
    stage |= {"model": MODEL, "dials": {}, "evals": (evaluation, twice)}
    write_json(tmp_path / "config.json", config)
    recipe = read_recipe(config)
    (fields,) = sources.batch_fields(recipe.stages[0], None).values()
    mesh = make_mesh(recipe.mesh)
    with use_mesh(mesh):
        params = init_params(build.model(recipe.stages[0]), fields, mesh, 0)
    plan, note = recipe.stages[0].checkpoint, make_note(config, 0, fields, {})
    with opened(Checkpoints(tmp_path / recipe.folder(0), plan, note)) as checkpoints:
        checkpoints.save(7, TrainState(jnp.int32(7), params, {}))
    return tmp_path


@pytest.mark.slow
def test_a_sweep_measures_each_preset_of_one_checkpoint(launch, run, monkeypatch):
    compiled = []
    compile_one = Predict._compile
    monkeypatch.setattr(
        Predict, "_compile", lambda self, name, *how: compiled.append(name) or compile_one(self, name, *how)
    )
    done = launch("launch.sweep", f"--workdir={run}", "--presets=d-768,d-dec,d-192", "--flops=adavid")
    assert done.code == 0, done.err
    assert compiled.count("embed_video") == 3, "two evaluations share the program of a preset"
    points = json.loads((run / "sweep.json").read_text())
    assert [(point["preset"], point["prefix"]) for point in points] == [
        (preset, prefix) for preset in ("d-768", "d-dec", "d-192") for prefix in ("val", "order")
    ]
    assert [point["widths"] for point in points[::2]] == [[32] * 4, [32, 24, 16, 8], [8] * 4]
    for point in points:
        tokens, views = 2 * 2 * 2, 1 if point["prefix"] == "val" else 2
        # AdaVid's formula for joint attention, with an mlp of twice the width: 16 n d^2 + 4 n^2 d.
        formula = views * sum(16 * tokens * d * d + 4 * tokens * tokens * d for d in point["widths"])
        assert point["flops"]["adavid"] == formula
        assert 0 < point["flops"]["true"] and all(name.startswith(point["prefix"]) for name in point["metrics"])
    # Full width is what the evaluations of the run itself measure.
    assert launch("launch.evaluate", f"--workdir={run}").code == 0
    full = points[0]["metrics"] | points[1]["metrics"]
    assert json.loads((run / "evals.json").read_text())["0_short/7"] == full
    assert points[4]["metrics"]["val/t2v_mean_rank"] != full["val/t2v_mean_rank"]
    lines = done.out.splitlines()
    assert lines[0].split() == "widths mean GFLOP adavid GFLOP svitt GFLOP true val/t2v_r1".split()
    assert [line.split()[:2] for line in lines[1:4]] == [["d-768", "32"], ["d-dec", "20"], ["d-192", "8"]]
    assert lines[5].split()[-1] == "order/accuracy" and len(lines) == 9
    picture = ElementTree.fromstring((run / "sweep.svg").read_text())
    assert sum(element.tag.endswith("circle") for element in picture.iter()) == 6
    for arguments, message in (
        (["--presets=d-700"], "unknown preset of widths 'd-700'"),
        (["--evals=vall"], "no evaluation with the prefix 'vall'; it has: val, order"),
        (["--step=3"], "has no checkpoint of step 3"),
    ):
        wrong = launch("launch.sweep", f"--workdir={run}", *arguments)
        assert wrong.code == 2 and message in wrong.err
