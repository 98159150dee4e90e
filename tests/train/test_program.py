"""A stage's step is traced once, by the check of its recipe, and what was traced is what trains."""

import shutil

import pytest

from vidlang.core.metrics import read_history
from vidlang.train import program, stages


@pytest.fixture
def traced(monkeypatch):
    """The steps that were traced."""
    found, trace = [], program.trace_step
    monkeypatch.setattr(program, "trace_step", lambda *some: found.append(some) or trace(*some))
    return found


def losses(folder):
    return [record["loss"] for record in read_history(folder / "0_short/metrics.jsonl") if "loss" in record]


def test_a_training_traces_its_step_once_and_so_does_one_that_goes_on(recipe, traced, tmp_path):
    config = recipe(evals=(), checkpoint={"every": "2 steps"})
    stages.train(config, tmp_path / "run")
    assert len(traced) == 1
    whole = losses(tmp_path / "run")
    for name in ("metrics.json", "0_short/metrics.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run/0_short/checkpoints/4")
    stages.train(config, tmp_path / "run")
    assert len(traced) == 2 and losses(tmp_path / "run") == whole


def test_where_only_the_data_tells_how_many_steps_there_are_it_is_traced_for_these(recipe, traced, tmp_path):
    """A schedule is part of the step, so that of the check, which knows no number, would not do."""
    optimizer = {"learning_rate": 0.01, "schedule": "cosine", "warmup": "1 step"}
    stages.train(recipe(evals=(), duration="1 epoch", optimizer=optimizer), tmp_path / "epoch")
    assert len(traced) == 2
    steps = len(losses(tmp_path / "epoch"))
    stages.train(recipe(evals=(), duration=f"{steps} steps", optimizer=optimizer), tmp_path / "steps")
    assert len(traced) == 3 and losses(tmp_path / "epoch") == losses(tmp_path / "steps")
