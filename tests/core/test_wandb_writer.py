"""Weights & Biases gets what TensorBoard gets, under one id over all restarts; a stand-in takes it down."""

import importlib.machinery
import io
import sys
import types

import pytest

from vidlang.core import metrics
from vidlang.core.wandb_writer import WandbWriter, require


class Taken:
    """What one run was told."""

    def __init__(self, **options):
        self.options, self.logged, self.steps, self.finished = options, [], {}, False

    def log(self, values, **options):
        assert not self.finished and not options, "wandb's own steps only rise"
        self.logged.append(values)

    def define_metric(self, name, **options):
        self.steps[name] = options.get("step_metric")

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that were begun in a stand-in for the package."""
    begun = []
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.Error = type("Error", (Exception,), {})

    def init(**options):
        if options["project"] == "closed":
            raise module.Error("permission\ndenied")
        begun.append(Taken(**options))
        return begun[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


def writer(folder, project="films", **options):
    settings = {"config": {"seed": 3}, "label": "short", "total_steps": 9, "stream": io.StringIO()}
    return WandbWriter(folder, project=project, **settings | options)


def test_it_gets_each_record_that_the_files_get(runs, tmp_path):
    written = writer(tmp_path / "run" / "0_short")
    written.write(0, {"loss": 2})
    written.write(1, {"loss": 1.5, "val/t2v_r1": 0.25})
    written.close()
    (run,) = runs
    assert run.logged == metrics.read_history(tmp_path / "run" / "0_short" / "metrics.jsonl")
    assert run.logged == [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.5, "val/t2v_r1": 0.25}]
    assert run.steps["*"] == "step" and run.finished
    names = {name: run.options[name] for name in ("project", "name", "group", "config", "resume")}
    assert names == {
        "project": "films",
        "name": "run/short",
        "group": "run",
        "config": {"seed": 3},
        "resume": "allow",
    }


def test_a_continued_stage_keeps_its_id_and_others_have_their_own(runs, tmp_path):
    for folder, project in (("a", "films"), ("a", "films"), ("b", "films"), ("a", "other"), ("a", "films")):
        writer(tmp_path / folder, project, first_step=4).close()
    first, again, stage, other, back = (run.options["id"] for run in runs)
    assert first == again == back and len({first, stage, other}) == 3
    (tmp_path / "a" / "wandb.json").write_text("{")
    with pytest.raises(ValueError, match="wandb.json is not the JSON that a training writes"):
        writer(tmp_path / "a")


def test_what_was_sent_is_not_sent_again(runs, tmp_path):
    """A killed run goes back to its checkpoint, perhaps twice; what an evaluation still owes a step is sent."""
    steps = []
    for first, last in ((0, 7), (4, 5), (3, 9)):
        written = writer(tmp_path / "a", first_step=first)
        for step in range(first, last):
            written.write(step, {"loss": step / 2})
            steps.append(step)
        if last == 9:
            written.write(6, {"val/t2v_r1": 0.5})
        written.close()
    sent = [record for run in runs for record in run.logged]
    assert [record["step"] for record in sent if "loss" in record] == list(range(9)) and len(steps) == 14
    assert [record for record in sent if "loss" not in record] == [{"step": 6, "val/t2v_r1": 0.5}]
    assert [record["step"] for record in metrics.read_history(tmp_path / "a/metrics.jsonl")] == [*range(9), 6]


def test_another_project_gets_what_the_first_one_did(runs, tmp_path):
    for project in ("films", "other"):
        written = writer(tmp_path / "a", project, first_step=1)
        written.write(1, {"loss": 0.5})
        written.close()
    assert [run.logged for run in runs] == [[{"step": 1, "loss": 0.5}]] * 2


def test_without_it_a_project_is_an_error_and_none_is_not(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require("")
    with pytest.raises(ValueError, match="runtime.wandb is 'films', and wandb is not installed here; pip"):
        require("films")
    with pytest.raises(ValueError, match="is not installed"):
        writer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_wandb_refuses_is_a_sentence(runs, tmp_path):
    with pytest.raises(ValueError, match=r"cannot take the project 'closed' \(permission denied\); run wandb login"):
        writer(tmp_path, "closed")
    assert not runs
