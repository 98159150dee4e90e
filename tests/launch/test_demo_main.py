"""The demo in small, through every room: corpus, chunk store, workers, training, evaluation, report."""

import json
from pathlib import Path

import pytest

from configs import demo
from vidlang.serve.demo import closing_words, run_demo


def tiny(root: Path):
    config = demo.get_config().copy_and_resolve_references()
    corpus = {"root": str(root), "train_videos": 8, "val_videos": 6, "long_videos": 0, "scenes_per_video": 2}
    stage = config.stages[0]
    stage.duration, stage.batch_size, stage.tokenizer = "4 steps", 8, f"{root}/tokenizer.json"
    stage.optimizer.warmup = "1 step"
    stage.checkpoint.every = "2 steps"
    for tower in (stage.model.video, stage.model.text):
        tower.transformer.update(layers=1, width=32, heads=2, mlp=64)
    for section in (stage.data, *(evaluation.data for evaluation in stage.evals)):
        section.update(corpus)
    for evaluation in stage.evals:
        evaluation.batch_size, evaluation.every = 8, "4 steps"
    return config


@pytest.mark.slow
def test_demo_measures_and_reports_and_is_not_done_twice(tmp_path):
    config, workdir = tiny(tmp_path / "data"), tmp_path / "run"
    metrics = run_demo(config, workdir)
    written = json.loads((workdir / "metrics.json").read_text())
    assert written == metrics
    for name in ("t2v_r1", "v2t_r1", "order_2afc", "untrained_t2v_r1"):
        assert 0.0 <= written[name] <= 1.0
    assert written["videos"] == 6
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5 * 6
    assert "://" not in page.replace("http://www.w3.org", ""), "the report loads nothing"
    words = closing_words(metrics, workdir, "configs/demo.py")
    assert "report.html" in words and words.count("python -m launch.") == 3

    def stamps():
        made = [*(tmp_path / "data").rglob("*.array_record*"), *workdir.rglob("checkpoints/*/params/**/*")]
        return {path: path.stat().st_mtime_ns for path in made if path.is_file()}

    before = stamps()
    assert before
    assert run_demo(config, workdir) == metrics
    assert stamps() == before
