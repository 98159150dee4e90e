"""The page about a run, from the command line: one stage trained and pruned, one still to come."""

import json
import re
import runpy

import pytest

from vidlang.core.config import to_dict
from vidlang.train.run_files import write_json
from vidlang.train.stages import train

TRANSFORMER = {"layers": 2, "width": 32, "heads": 2, "mlp": 32, "dtype": "float32", "scan": False}
MODEL = {
    "name": "dual_encoder",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8), "pool": "cls"},
    "text": {"vocab": 128, "max_length": 8, "transformer": {**TRANSFORMER, "layers": 1}, "pool": "mean"},
    "embed": 8,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}


@pytest.fixture
def config(tiny_config):
    """Two steps of a dual encoder whose video tower prunes."""
    path, root = tiny_config.removeprefix("--config=").rsplit(":", 1)
    plain = to_dict(runpy.run_path(path)["get_config"](root))
    (stage,) = plain["stages"]
    (evaluation,) = stage["evals"]
    stage |= {
        "duration": "2 steps",
        "model": MODEL,
        "dials": {"mask": 0.25, "edges": {"local": 1, "random": 0, "block": 2}, "keep": {"0": 0.5}},
        "optimizer": {"learning_rate": 0.01},
        "checkpoint": {"every": "2 steps", "keep": 1},
        "evals": ({**evaluation, "every": "0 steps"},),
    }
    return plain


@pytest.mark.slow
def test_a_run_of_which_one_stage_is_done_has_a_page(launch, config, tmp_path):
    workdir = tmp_path / "run"
    metrics = train(config, workdir)
    # Stages may be added to a run at its end; this one has not begun.
    later = {**config["stages"][0], "name": "long", "clip": {**config["stages"][0]["clip"], "frames": 8}}
    write_json(workdir / "config.json", {**config, "stages": (*config["stages"], later)})
    point = {"preset": "d-768", "widths": [32, 32], "prefix": "val", "flops": {"true": 1e9}, "metrics": {"val/x": 0.5}}
    (workdir / "sweep.json").write_text(json.dumps([point]))

    done = launch("launch.report", f"--workdir={workdir}")
    assert done.code == 0, done.err
    assert done.out.strip() == str(workdir / "report.html")
    html = (workdir / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 stages begun: 0_short, 1_long." in html and "Finished at step 2 (2 steps)." in html
    # 2 x 2 x 2 tokens, of which the mask leaves six in training, and nothing is masked in the picture.
    assert re.findall(r"<td>(\d+ to \d+)</td>", html) == ["6 to 3", "12 to 6"]
    assert "after layer 0, which keeps 0.5: 4 of 8 tokens" in html
    assert "What pruning leaves cannot be shown: the stage has no checkpoint yet" in html
    costs, times = (
        [float(share) for share in re.findall(r"<td>([\d.]+)\u00a0%<svg", part)]
        for part in html.split("Where the time went")
    )
    assert len(costs) == 4 and all(0 < share < 100 for share in costs)
    assert sum(times) == pytest.approx(100, abs=1)
    shown = f"{metrics['val/t2v_r1'] * 100:.1f}\u00a0%"
    assert f'<th scope="row">Text to video, recall at 1</th><td>{shown}</td>' in html
    assert html.count("data:image/png;base64,") == 1 and html.count("data:image/svg+xml;base64,") == 1
    assert "://" not in html, "the page loads nothing"

    page = tmp_path / "pages" / "run.html"
    assert launch("launch.report", f"--workdir={workdir}", f"--output={page}", "--clip=31").code == 0
    assert "there is no clip 31 in the evaluation val/retrieval" in page.read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_a_sentence(launch, tmp_path):
    done = launch("launch.report", f"--workdir={tmp_path}")
    assert done.code == 2 and "is not the folder of a run: it has no config.json" in done.err


def test_several_runs_are_compared_however_they_are_named(launch, config, tmp_path):
    for name in ("a", "b,c"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", {**config, "seed": len(name)})
    folders, page = [str(tmp_path / name) for name in ("a", "b,c")], tmp_path / "page.html"
    done = launch("launch.report", *folders, f"--output={page}")
    assert (done.code, done.out.strip()) == (0, str(page)), done.err
    assert '<th scope="row">seed</th><td>1</td><td>3</td>' in page.read_text(encoding="utf-8")
    assert launch("launch.report", f'--runs={folders[0]},"{folders[1]}"').out.strip() == f"{folders[0]}/comparison.html"
    wrong = launch("launch.report", folders[0], str(tmp_path))
    assert wrong.code == 2 and "is not the folder of a run: it has no config.json" in wrong.err
    assert "--clip is for the page about one run" in launch("launch.report", *folders, "--clip=1").err
    assert "give the run's folder as --workdir" in launch("launch.report").err
