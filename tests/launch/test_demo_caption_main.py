"""The demo's second half in small: language, captions, evaluations and the report, from a run that is there."""

import json

import pytest

from configs import demo_caption as recipe
from tests.launch.test_demo_main import tiny
from vidlang.core.config import to_dict
from vidlang.serve.demo_caption import GALLERY_ROWS, closing_words, run_demo_caption
from vidlang.train.stages import train


def tiny_caption(encoder):
    """The recipe on the corpus and the encoder of a tiny demo, 2 and 3 steps long."""
    config, before = recipe.get_config().copy_and_resolve_references(), encoder.stages[0]
    corpus = {name: before.data[name] for name in ("root", "train_videos", "val_videos", "long_videos")}
    corpus["scenes_per_video"] = before.data.scenes_per_video
    for stage, steps in zip(config.stages, (2, 3), strict=True):
        stage.update(duration=f"{steps} steps", batch_size=8, tokenizer=before.tokenizer)
        stage.model.language.update(width=32, mlp=32)
        for source in stage.data.sources:
            source["data"].update(corpus)
    stage.model.video = before.model.video
    for evaluation in stage.evals:
        evaluation.data.update(corpus)
        evaluation.batch_size = 8
    return config


@pytest.mark.slow
def test_captions_are_measured_and_shown_and_not_made_twice(tmp_path):
    encoder = tiny(tmp_path / "data")
    encoder.stages[0].update(duration="2 steps", evals=())
    encoder.stages[0].checkpoint.best = ""
    train(to_dict(encoder), tmp_path / "encoder")
    config, workdir = tiny_caption(encoder), tmp_path / "run"
    metrics = run_demo_caption(config, workdir, tmp_path / "encoder")
    assert json.loads((workdir / "metrics.json").read_text()) == metrics
    assert metrics["captioner"]["val/count"] > 0
    for column in ("captioner", "blind"):
        assert {"val/exact", "val/order", "val/cider"} <= metrics[column].keys()
    assert 0 < metrics["chance"]["choice/accuracy"] < 1 and 0 <= metrics["captioner"]["choice/accuracy"] <= 1
    assert "--run=" in closing_words(metrics, workdir)
    page = (workdir / "report.html").read_text()
    assert page.count("<div>said: ") == page.count("<div>true: ") == page.count("data:image/png;base64,")
    assert 0 < page.count("<div>said: ") <= GALLERY_ROWS
    assert "://" not in page.replace("http://www.w3.org", ""), "the report loads nothing"
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/*/params/**/*")}
    assert before and run_demo_caption(config, workdir, tmp_path / "encoder") == metrics
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/*/params/**/*")} == before


def test_without_a_finished_demo_it_says_what_to_run(launch, tmp_path):
    done = launch("launch.demo_caption", f"--workdir={tmp_path}/run", f"--encoder={tmp_path}/none")
    assert done.code == 2 and "none is no finished run; run `make demo` first" in done.err
    assert not (tmp_path / "run").exists()
