"""Evaluating from the command line."""

import json

import pytest


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


def test_evaluating_from_the_command_line(launch, tiny_config, workdir):
    trained = launch("launch.train", tiny_config, f"--workdir={workdir}", "--config.stages[0].duration=7 steps")
    assert trained.code == 0
    newest = launch("launch.evaluate", f"--workdir={workdir}")
    assert newest.code == 0
    shown = [line for line in trained.out.splitlines() if line.startswith("val/") and "evaluated" not in line]
    assert newest.out.splitlines() == shown
    untrained = launch("launch.evaluate", f"--workdir={workdir}", "--untrained")
    assert untrained.code == 0
    assert set(json.loads((workdir / "evals.json").read_text())) == {"0_short/7", "0_short/untrained"}


def test_what_is_not_there_is_one_sentence(launch, tmp_path):
    done = launch("launch.evaluate", f"--workdir={tmp_path}")
    assert done.code == 2
    assert "is not the folder of a run" in done.err and done.err.count("\n") == 1
    done = launch("launch.evaluate", f"--workdir={tmp_path}", "--untrained", "--step=3")
    assert done.code == 2 and "exclude each other" in done.err
