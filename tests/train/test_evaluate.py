"""A run looked at again gives what it gave, from its folder alone."""

import json
import shutil

import numpy as np
import pytest

from vidlang.core.tree import flatten_paths
from vidlang.train import stages
from vidlang.train.evaluate import evaluate, restore_model, table
from vidlang.train.saved import find_checkpoint


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """(workdir, what training returned, what it measured before the first step)."""
    workdir = tmp_path_factory.mktemp("run")
    config = recipe()
    config["stages"][0]["evals"][0]["at_start"] = True
    metrics = stages.train(config, workdir)
    lines = (workdir / "0_short/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first.pop("step") == 0
    return workdir, metrics, first


def test_evaluating_again_gives_the_same_numbers(run):
    workdir, metrics, at_start = run
    (before,) = [path.read_bytes() for path in [workdir / "metrics.json"]]
    newest = evaluate(workdir)
    assert newest == {name: value for name, value in metrics.items() if name != "loss"}
    assert evaluate(workdir, untrained=True) == at_start
    assert evaluate(workdir, step=2, mesh={"data": 2, "fsdp": 4}).keys() == newest.keys()
    kept = json.loads((workdir / "evals.json").read_text())
    assert list(kept) == ["0_short/4", "0_short/untrained", "0_short/2"]
    assert kept["0_short/4"] == newest and kept["0_short/2"] != newest
    assert (workdir / "metrics.json").read_bytes() == before


def test_an_evaluation_added_later_is_run_too(run, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(run[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["stages"][0]["evals"][0]["prefix"] = "again"
    (workdir / "config.json").write_text(json.dumps(config))
    assert "again/t2v_r1" in evaluate(workdir)


def test_the_model_comes_back_from_the_folder_alone(run):
    model, params, stage = restore_model(run[0])
    assert stage.name == "short" and stage.batch_size == 8
    embedded = model.apply({"params": params}, np.ones((3, 8), np.int32), method="embed_text")
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-3)
    earlier = restore_model(run[0], step=2)[1]
    same = restore_model(run[0] / "0_short/checkpoints/2")[1]
    for name, leaf in flatten_paths(earlier).items():
        np.testing.assert_array_equal(leaf, flatten_paths(same)[name])
    assert not np.array_equal(earlier["text_out"], params["text_out"])


def test_a_path_means_a_run_a_stage_or_a_checkpoint(run):
    stage = run[0] / "0_short"
    for path in (run[0], stage, stage / "checkpoints"):
        assert find_checkpoint(path) == (stage, 4)
    assert find_checkpoint(stage / "checkpoints/2") == (stage, 2)


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="0_short has no checkpoint of step 3; it has: 2, 4"):
        evaluate(run[0], step=3)
    with pytest.raises(ValueError, match="is not the folder of a run: it has no config.json"):
        evaluate(tmp_path)
    with pytest.raises(ValueError, match="there is no complete checkpoint in"):
        restore_model(tmp_path)
    with pytest.raises(ValueError, match="there is no folder .*nowhere; give a run"):
        restore_model(tmp_path / "nowhere")
    (tmp_path / "0_a/checkpoints/7").mkdir(parents=True)
    with pytest.raises(ValueError, match="7 is no readable checkpoint"):
        restore_model(tmp_path)


def test_metrics_are_shown_one_a_line():
    assert table({"a": 0.5, "long/name": 3}) == "a          0.5\nlong/name  3"
