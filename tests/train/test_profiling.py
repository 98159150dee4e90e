"""A trace is of the steps that were asked for, and a wrong range is told before anything is compiled."""

import gzip
import json
import shutil

import pytest

from vidlang.train import stages
from vidlang.train.prepared import Extras
from vidlang.train.profiling import Steps, read_steps
from vidlang.train.program import Program


@pytest.mark.slow
def test_a_trace_has_these_steps_and_no_others(recipe, tmp_path, capsys):
    config = recipe(duration="6 steps", evals=(), checkpoint={"every": "6 steps"})
    extras = Extras(profile=read_steps("2:5"), exchanges=lambda compiled: f"sends {len(compiled.as_text()) > 0}")
    stages.train(config, tmp_path, extras=extras)
    assert capsys.readouterr().out.count("sends True\n") == 1
    (trace,) = (tmp_path / "0_short/profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]
    assert steps == [2, 3, 4]
    assert list((tmp_path / "0_short/profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["100", "5:5", "9:3", "a:b", "-1:4", "1:2:3"])
def test_what_is_no_range(text):
    with pytest.raises(ValueError, match=r"--profile is FIRST:LAST, as in 100:105 .*; found"):
        read_steps(text)


def test_steps_that_the_stage_does_not_take(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Program, "compile", None)  # it does not come so far
    with pytest.raises(
        ValueError, match="--profile=3:9 names steps that stage 0_short will not take: it goes to step 4"
    ):
        stages.train(recipe(), tmp_path, extras=Extras(profile=Steps(3, 9)))


def test_a_start_after_these_steps_goes_on_without_a_trace(recipe, tmp_path, caplog):
    """As a launcher does after a fault, with the same flags."""
    stages.train(recipe(evals=()), tmp_path)
    for name in ("0_short/metrics.json", "metrics.json", "0_short/checkpoints/4"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stages.train(recipe(evals=()), tmp_path, extras=Extras(profile=Steps(1, 3)))
    assert "stage 0_short goes on from step 2, and --profile=1:3 begins before" in caplog.text
    assert not (tmp_path / "0_short/profile").exists()
