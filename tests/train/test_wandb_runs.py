"""A training that asks for Weights & Biases sends each stage there, and does not begin where it cannot."""

import json

import pytest

from tests.core.test_wandb_writer import runs  # noqa: F401, a fixture
from vidlang.train.stages import train


def test_a_training_sends_what_it_writes(runs, recipe, tmp_path):  # noqa: F811
    config = recipe(duration="2 steps", evals=())
    config["runtime"] = {"wandb": "films"}
    train(config, tmp_path / "run")
    (run,) = runs
    lines = (tmp_path / "run" / "0_short" / "metrics.jsonl").read_text().splitlines()
    assert run.logged == [json.loads(line) for line in lines] and len(lines) == 2
    assert run.options["config"]["seed"] == config["seed"] and run.finished


def test_a_training_without_wandb_ends_before_it_begins(recipe, tmp_path):
    config = recipe(duration="2 steps", evals=())
    config["runtime"] = {"wandb": "films"}
    with pytest.raises(ValueError, match="runtime.wandb is 'films', and wandb is not installed here"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
