"""Checkpoints that fail to be written, that are damaged, and that are the best or not."""

import json
import math
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.recipe import CheckpointPlan
from vidlang.train.saved import all_steps, check_same_result, find_checkpoint, make_note, read_note, restore_params
from vidlang.train.step import TrainState

CONFIG = {"seed": 0, "stages": ({"name": "a", "model": "m"},)}
NOTE = make_note(CONFIG, 0, {"text_BL": jax.ShapeDtypeStruct((4, 8), np.int32)}, {"rows": 4})


def state_of(step, size=4):
    noise = jax.random.normal(jax.random.key(step), (size,))
    return TrainState(jnp.int32(step), {"a": noise}, {"m": jnp.ones(2)})


def open_in(folder, **plan):
    return opened(Checkpoints(folder, CheckpointPlan(**{"keep": 1, "best": "val/r1"} | plan), NOTE))


def save_all(folder, scores, **plan):
    """Saves a step for each value of best; None is a step without an evaluation."""
    with open_in(folder, **plan) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state_of(step), None if score is None else {"val/r1": score, "val/loss": 3.0})
    return all_steps(folder)


def stored(folder, step):
    return json.loads((folder / f"checkpoints/{step}/metrics_of_best/metadata").read_text())


@pytest.mark.parametrize(("mode", "want"), [("max", [2, 5]), ("min", [3, 5])])
def test_the_best_outlives_the_latest_also_over_a_restart(tmp_path, mode, want):
    save_all(tmp_path, {1: 0.5, 2: 0.9, 3: 0.1}, best_mode=mode, keep=9)
    assert stored(tmp_path, 2) == {"val/r1": 0.9, "val/loss": 3.0}
    with open_in(tmp_path, best_mode=mode) as checkpoints:
        assert not checkpoints.improves({"val/r1": 0.5})
        assert checkpoints.improves({"val/r1": 1.0 if mode == "max" else 0.0})
    assert save_all(tmp_path, {4: 0.5, 5: None}, best_mode=mode) == want


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_is_no_number_is_never_the_best(tmp_path, value, mode):
    assert save_all(tmp_path, {1: 0.5, 2: value, 3: None}, best_mode=mode) == [1, 3]
    with open_in(tmp_path, best_mode=mode) as checkpoints:
        assert not checkpoints.improves({"val/r1": value})
        assert checkpoints.improves({"val/r1": 0.6 if mode == "max" else 0.4})
    save_all(tmp_path / "first", {1: value, 2: None}, best_mode=mode)
    with open_in(tmp_path / "first", best_mode=mode) as checkpoints:
        assert checkpoints.improves({"val/r1": 0.5}) and not checkpoints.improves({"val/r1": value})


def test_metrics_of_other_evaluations_are_no_error_and_a_typo_is(tmp_path):
    with open_in(tmp_path) as checkpoints:
        checkpoints.check_best({"order/accuracy": 0.5})
        checkpoints.save(1, state_of(1), {"order/accuracy": 0.5})
        checkpoints.check_best({"order/accuracy": 0.5, "val/r1": 0.5})
        with pytest.raises(ValueError, match="best is 'val/r1', but that evaluation gives: val/r10, val/rank"):
            checkpoints.check_best({"order/accuracy": 0.5, "val/r10": 0.5, "val/rank": 2.0})
    assert all_steps(tmp_path) == [1]


def test_metrics_that_come_after_the_save_are_added(tmp_path):
    save_all(tmp_path, {1: 0.1, 2: None}, keep=2)
    with open_in(tmp_path) as checkpoints:
        checkpoints.save(2, state_of(2), {"val/r1": 0.7})
        assert not checkpoints.improves({"val/r1": 0.6})
    assert stored(tmp_path, 2) == {"val/r1": 0.7}
    assert save_all(tmp_path, {3: 0.6, 4: None}) == [2, 4]
    np.testing.assert_array_equal(
        restore_params(tmp_path, 2, make_mesh({"data": -1}))["a"], np.asarray(state_of(2).params["a"])
    )


def damage(folder, step, how):
    path = folder / f"checkpoints/{step}/note/metadata"
    if how == "missing":
        path.unlink()
    else:
        path.write_text({"cut": path.read_text()[:20], "other": "[1]", "empty": "{}"}[how])


@pytest.mark.parametrize("how", ["missing", "cut", "other", "empty"])
def test_an_unreadable_note_makes_the_one_before_the_newest(tmp_path, how, caplog):
    save_all(tmp_path, {1: 0.1, 2: 0.2}, keep=2)
    damage(tmp_path, 2, how)
    check_same_result(tmp_path, CONFIG, 0)
    with pytest.raises(ValueError, match="other settings"):
        check_same_result(tmp_path, CONFIG | {"seed": 1}, 0)
    assert find_checkpoint(tmp_path) == (tmp_path, 1)
    with pytest.raises(ValueError, match="checkpoints/2 is no readable checkpoint"):
        read_note(tmp_path, 2)
    assert "checkpoints/2 is no readable checkpoint" in caplog.text
    with open_in(tmp_path) as checkpoints:
        restored = checkpoints.restore(state_of(0))
        assert int(restored.step) == checkpoints.latest == 1
        assert checkpoints.improves({"val/r1": 0.15})
    assert (tmp_path / "unreadable_checkpoints/2").is_dir()
    damage(tmp_path, 1, how)
    for look in (lambda: check_same_result(tmp_path, CONFIG, 0), lambda: find_checkpoint(tmp_path)):
        with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read. Restore one from a backup"):
            look()
    with open_in(tmp_path) as checkpoints, pytest.raises(ValueError, match="none of the checkpoints in"):
        checkpoints.restore(state_of(0))


def test_damaged_metrics_only_lose_the_comparison(tmp_path, caplog):
    save_all(tmp_path, {1: 0.9})
    (tmp_path / "checkpoints/1/metrics_of_best/metadata").write_text("{")
    with open_in(tmp_path) as checkpoints:
        assert int(checkpoints.restore(state_of(0)).step) == 1
        assert checkpoints.improves({"val/r1": 0.1})
    assert "step 1 does not count as the best" in caplog.text


# Orbax reports the same failure to threads of its own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("where", ["wait", "next save", "close"])
def test_a_save_that_cannot_be_written_is_one_sentence(tmp_path, where):
    save_all(tmp_path, {1: 0.1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sentence = (
        r"could not save step 2 to .*checkpoints: .*; [\d,]+ MB free there; the last complete checkpoint is step 1$"
    )
    try:
        with pytest.raises(OSError, match=sentence) as caught, open_in(tmp_path) as checkpoints:
            big = state_of(2, 1_000_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[0][1]))
            checkpoints.save(2, big)
            if where == "wait":
                checkpoints.wait()
            elif where == "next save":
                checkpoints.save(3, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert "\n" not in str(caught.value)
    with open_in(tmp_path) as checkpoints:
        assert int(checkpoints.restore(state_of(0)).step) == 1


def test_an_error_inside_is_not_hidden_by_one_of_closing(tmp_path, monkeypatch, caplog):
    def fail():
        raise OSError("disk full")

    with pytest.raises(KeyError, match="mine"), open_in(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints, "close", fail)
        raise KeyError("mine")
    assert "disk full" in caplog.text


def test_reading_parameters_says_nothing(tmp_path, caplog):
    save_all(tmp_path, {1: 0.1})
    caplog.clear()
    restore_params(tmp_path, 1, make_mesh({"data": -1}))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
