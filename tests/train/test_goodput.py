"""Where time went: each second of a run counts once, and what was done in vain is not taken for training."""

import json
import signal

import pytest

from vidlang.train import goodput, stages
from vidlang.train.goodput import Ledger, account, read_goodput
from vidlang.train.signals import Interrupted


def span(what, began, seconds, run="a", stage="0_short", **steps):
    return {"run": run, "stage": stage, "what": what, "began": began, "seconds": seconds, **steps}


def train(began, seconds, first, last, *, waited=0.0, skipped=0, **others):
    return span("train", began, seconds, first=first, last=last, waited=waited, skipped=skipped, **others)


def test_every_second_counts_once():
    spans = [
        span("start", 100.0, 2.0),
        span("compile", 102.0, 8.0),
        train(110.0, 10.0, 0, 10, waited=1.0),
        train(120.0, 10.0, 10, 20, skipped=2),
        span("checkpoint", 131.0, 3.0),  # a second that nobody took
    ]
    found = account(spans)
    assert found.wall == 34.0 and sum(found.seconds.values()) == pytest.approx(34.0)
    want = {"start": 2, "compile": 8, "data wait": 1, "left out": 2, "training": 17, "other": 1, "checkpoint": 3}
    assert found.seconds == pytest.approx(want)
    assert (found.share, found.skipped, found.repeated, found.restarts) == (pytest.approx(0.5), 2, 0, 0)


def test_steps_that_were_done_again_were_in_vain():
    spans = [
        train(0.0, 10.0, 0, 10),
        train(10.0, 10.0, 10, 20),
        span("start", 25.0, 5.0, run="b"),
        train(30.0, 10.0, 15, 25, run="b"),  # from the checkpoint of step 15
        train(45.0, 20.0, 5, 25, run="c"),  # that one was damaged
        train(65.0, 3.0, 0, 3, run="c", stage="1_other"),  # another stage's steps are others
    ]
    found = account(spans)
    assert found.wall == 68.0 and sum(found.seconds.values()) == pytest.approx(68.0)
    known = {what: took for what, took in found.seconds.items() if took}
    assert known == pytest.approx({"training": 5 + 20 + 3, "done again": 25, "down": 10, "start": 5})
    assert (found.restarts, found.repeated) == (2, 5 + 10 + 10)
    assert str(found) == (
        "goodput 41.2% of 1m08s; the rest: done again 36.8%, down 14.7%, start 7.4%; 2 restarts, 25 steps done again"
    )


def test_nothing_is_known_of_a_run_without_a_file(tmp_path):
    assert read_goodput(tmp_path).share == 0.0


def test_a_ledger_writes_what_it_is_told_and_survives_a_kill(tmp_path, monkeypatch, caplog):
    now = {"s": 0.0}
    monkeypatch.setattr(goodput.time, "time", lambda: 50.0 + now["s"])
    monkeypatch.setattr(goodput.time, "monotonic", lambda: 7.0 + now["s"])
    ledger = Ledger(tmp_path, "0_short")
    now["s"] = 2.0
    ledger.turn_to("train")
    for step in range(24):
        now["s"] += 1.0
        ledger.step(step, 0.25, step == 3)
    with ledger.during("evaluation"):
        now["s"] += 5.0
    # Killed in the middle of the next line.
    with (tmp_path / "goodput.jsonl").open("a") as file:
        file.write('{"run": "a", "sta')
    other = Ledger(tmp_path, "0_short")
    now["s"] += 1.0
    other.close()
    found = read_goodput(tmp_path)
    assert "cut short" in caplog.text
    want = {"start": 3, "data wait": 6, "left out": 0.75 * 1, "training": 17.25, "evaluation": 5}
    assert {name: took for name, took in found.seconds.items() if took} == pytest.approx(want, rel=0.02)
    lines = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines() if "began" in line]
    trained = [(line["first"], line["last"]) for line in lines if "first" in line]
    assert len(trained) == 3 and trained[0] == (0, 11) and trained[-1][-1] == 24, "written every ten seconds"


@pytest.mark.slow
def test_a_run_accounts_for_itself_over_a_restart(recipe, tmp_path, monkeypatch, capfd):
    config = recipe(duration="8 steps", evals=(), checkpoint={"every": "3 steps"})
    real = Ledger.step

    def interrupted(self, step, waited, skipped):
        real(self, step, waited, skipped)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "step", interrupted)
        with pytest.raises(Interrupted):
            stages.train(config, tmp_path)
    monkeypatch.setattr(goodput, "RUN", "another")
    stages.train(config, tmp_path)
    found = read_goodput(tmp_path)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=0.01, abs=0.05)
    assert {"training", "compile", "restore", "checkpoint", "start", "down"} <= set(found.seconds)
    assert found.restarts == 1 and found.repeated == 0, "a signal saves first"
    assert 0 < found.share < 1
    assert "\ngoodput " in capfd.readouterr().out
