"""Stopping and going on changes nothing; a bad state is never saved; a run never mixes two configs."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train import sources, stages
from vidlang.train.predict import Evaluations
from vidlang.train.saved import all_steps, restore_params
from vidlang.train.signals import Interrupted


def params_of(folder, step):
    params = restore_params(folder, step, make_mesh({"data": -1}))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(params).items()}


def history_of(folder):
    """What metrics.jsonl says, without what a clock measured."""
    clock = ("clips_per_second", "step_seconds", "data_wait")
    return [{k: v for k, v in record.items() if k not in clock} for record in read_history(folder / "metrics.jsonl")]


def assert_same(got, want, **tolerance):
    assert got.keys() == want.keys()
    for name in want:
        if tolerance:
            np.testing.assert_allclose(got[name], want[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.fixture
def signal_at(monkeypatch):
    """Makes this process get a signal while it draws the batch of a step, and so still in the step before."""

    def arm(step, signum=signal.SIGTERM):
        real = sources.train_stream

        class Armed:
            def __init__(self, stream, step):
                self.stream, self.step = stream, step

            def __enter__(self):
                return self

            def __exit__(self, *reason):
                self.stream.close()

            def __next__(self):
                if self.step == step:
                    os.kill(os.getpid(), signum)
                self.step += 1
                return next(self.stream)

            @property
            def restarts(self):
                return self.stream.restarts

        def armed(recipe, index, clips, *, start_step):
            return Armed(real(recipe, index, clips, start_step=start_step), start_step)

        monkeypatch.setattr(sources, "train_stream", armed)

    return arm


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """(folder, final metrics) of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir / "0_short", stages.train(recipe(), workdir)


def test_a_run_learns_and_writes_what_it_promises(whole):
    folder, metrics = whole
    assert json.loads((folder.parent / "metrics.json").read_text()) == metrics
    assert set(metrics) > {"loss", "val/t2v_r1", "val/v2t_mean_rank"}
    assert all_steps(folder) == [2, 4]
    history = history_of(folder)
    assert [record["step"] for record in history if "loss" in record] == [0, 1, 2, 3]
    assert [record["step"] for record in history if "val/t2v_r1" in record] == [2, 4]
    assert history[0]["loss"] != history[3]["loss"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_two_steps_and_two_more_are_four_bit_for_bit(whole, recipe, tmp_path, signal_at, monkeypatch, capfd, signum):
    config = recipe(checkpoint={"every": "3 steps", "keep": 3})
    with monkeypatch.context(), pytest.raises(Interrupted) as interruption:
        signal_at(2, signum)
        stages.train(config, tmp_path)
    monkeypatch.undo()
    assert interruption.value.code == 128 + signum
    assert "at step 2 of 4 in stage 'short'; all is saved, the same command goes on" in capfd.readouterr().err
    folder = tmp_path / "0_short"
    assert all_steps(folder) == [2] and not (folder / "metrics.json").exists()
    metrics = stages.train(config, tmp_path)
    assert_same(params_of(folder, 4), params_of(whole[0], 4))
    assert metrics == whole[1]
    assert history_of(folder) == history_of(whole[0])


@pytest.mark.slow
def test_another_mesh_goes_on_with_the_same_training(whole, recipe, tmp_path, signal_at, monkeypatch):
    with pytest.raises(Interrupted):
        signal_at(1)
        stages.train(recipe(), tmp_path)
    monkeypatch.undo()
    stages.train(recipe(mesh={"data": 2, "fsdp": 4}), tmp_path)
    assert_same(params_of(tmp_path / "0_short", 4), params_of(whole[0], 4), rtol=1e-4, atol=1e-5)


# Orbax's other readers still report to its closed event loop when one of them has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(whole, recipe, tmp_path, caplog):
    folder = tmp_path / "0_short"
    stages.train(recipe(), tmp_path)
    (folder / "metrics.json").unlink()  # as if it had been killed before its end
    for path in (folder / "checkpoints" / "4" / "rest").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    metrics = stages.train(recipe(), tmp_path)
    assert "checkpoints/4 cannot be read" in caplog.text
    assert (folder / "unreadable_checkpoints" / "4").is_dir()
    assert metrics == whole[1]
    assert_same(params_of(folder, 4), params_of(whole[0], 4))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_when_no_checkpoint_can_be_read_nothing_is_started_afresh(recipe, tmp_path, signal_at, monkeypatch):
    with pytest.raises(Interrupted):
        signal_at(0)
        stages.train(recipe(), tmp_path)
    monkeypatch.undo()
    (tmp_path / "0_short/checkpoints/1/params/manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read.*step 1"):
        stages.train(recipe(), tmp_path)


def test_a_finished_run_is_not_done_again(whole, recipe, monkeypatch):
    monkeypatch.setattr(stages, "train_stage", lambda *a, **k: pytest.fail("trained again"))
    assert stages.train(recipe(), whole[0].parent) == whole[1]


def test_a_loss_that_is_no_number_stops_before_it_is_saved(recipe, tmp_path):
    config = recipe(optimizer={"learning_rate": 1e25}, checkpoint={"every": "1 step"}, evals=())
    with pytest.raises(FloatingPointError, match="nan at step 1 of stage 'short'.*the last good one is step 1"):
        stages.train(config, tmp_path)
    assert all_steps(tmp_path / "0_short") == [1]
    assert np.isfinite([leaf.sum() for leaf in params_of(tmp_path / "0_short", 1).values()]).all()


def test_other_settings_are_refused_and_named(whole, recipe):
    workdir = whole[0].parent
    before = (workdir / "config.json").read_text()
    changed = recipe(optimizer={"learning_rate": 0.02, "warmup": "1 step"}, seed=3)
    with pytest.raises(ValueError, match=r"other settings.*seed, stages\[0\].optimizer.learning_rate.*new --workdir"):
        stages.train(changed, workdir)
    with pytest.raises(ValueError, match="already holds a stage 0_short, and this config has 0_long"):
        stages.train(recipe(name="long"), workdir)
    assert (workdir / "config.json").read_text() == before


def test_what_does_not_change_results_may_change(whole, recipe):
    config = recipe(mesh={"fsdp": 8}, checkpoint={"every": "3 steps"}, evals=())
    config["runtime"] = {"log_every": 1}
    assert stages.train(config, whole[0].parent) == whole[1]


def test_a_stage_starts_from_the_one_before(whole, recipe, tmp_path):
    second = recipe(name="second", duration="1 step", optimizer={"learning_rate": 0.0}, evals=())["stages"]
    config = recipe()
    config["stages"] += second
    os.symlink(whole[0], tmp_path / "0_short")
    stages.train(config, tmp_path)
    assert_same(params_of(tmp_path / "1_second", 1), params_of(whole[0], 4))


def test_parameters_of_another_model_are_refused(whole, recipe, tmp_path):
    model = {"name": "tiny", "width": 16, "embed": 4}
    config = recipe(model=model, init_from=str(whole[0].parent), evals=(), duration="1 step")
    with pytest.raises(ValueError, match=r"(?s)step 4 of .*0_short does not fit.*2 mismatched:\n  text_out"):
        stages.train(config, tmp_path)
    config["stages"][0]["init_allow"] = ("_out$", "_out ")
    stages.train(config, tmp_path)


def test_an_evaluation_that_fails_says_which_and_when(recipe, tmp_path, monkeypatch):
    from vidlang.evals import retrieval

    monkeypatch.setattr(retrieval.Evaluator, "run", lambda self, params: 1 / 0)
    with pytest.raises(RuntimeError, match="the evaluation val/retrieval at step 2 failed: ZeroDivisionError"):
        stages.train(recipe(), tmp_path)


def test_the_best_is_saved_when_it_is_found_and_kept_besides_the_last(recipe, tmp_path, monkeypatch):
    from vidlang.evals import retrieval

    results = iter([0.1, 0.9, 0.3, 0.2, 0.25])
    monkeypatch.setattr(retrieval.Evaluator, "run", lambda self, params: {"t2v_r1": next(results)})
    evals = tuple({**evaluation, "every": "1 step"} for evaluation in recipe()["stages"][0]["evals"])
    config = recipe(duration="5 steps", evals=evals, checkpoint={"every": "3 steps", "keep": 1, "best": "val/t2v_r1"})
    stages.train(config, tmp_path)
    assert all_steps(tmp_path / "0_short") == [2, 5]


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations give these metrics one after the other; an exception is raised."""
    from vidlang.evals import retrieval

    def script(*results):
        left = iter(results)

        def run(self, params):
            result = next(left)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(retrieval.Evaluator, "run", run)

    return script


def evals_of(recipe, *changes):
    """The recipe's evaluation, once for each of these changes to it."""
    (evaluation,) = recipe()["stages"][0]["evals"]
    return tuple({**evaluation, **change} for change in changes)


def test_another_evaluation_may_have_its_own_steps(recipe, tmp_path, scripted):
    evals = evals_of(recipe, {"every": "3 steps"}, {"every": "1 step", "prefix": "order"})
    order = {"accuracy": 0.5}
    scripted(order, order, {"t2v_r1": 0.9}, order, {"t2v_r1": 0.1}, order)
    checkpoint = {"every": "1 step", "keep": 1, "best": "val/t2v_r1"}
    metrics = stages.train(recipe(evals=evals, checkpoint=checkpoint), tmp_path)
    assert metrics["val/t2v_r1"] == 0.1 and metrics["order/accuracy"] == 0.5
    assert all_steps(tmp_path / "0_short") == [3, 4]


@pytest.mark.parametrize("at_start", [True, False])
def test_a_typo_in_best_is_told_by_the_first_evaluation(recipe, tmp_path, scripted, at_start):
    scripted({"t2v_r1": 0.9})
    evals = evals_of(recipe, {"at_start": at_start})
    checkpoint = {"every": "2 steps", "best": "val/t2v_r11"}
    with pytest.raises(ValueError, match="best is 'val/t2v_r11', but that evaluation gives: val/t2v_r1$"):
        stages.train(recipe(evals=evals, checkpoint=checkpoint), tmp_path)
    assert all_steps(tmp_path / "0_short") == []
    steps = [record["step"] for record in read_history(tmp_path / "0_short/metrics.jsonl") if "val/t2v_r1" in record]
    assert steps == [0 if at_start else 2]


def test_the_best_is_known_where_a_signal_came_before_its_evaluation(
    recipe, tmp_path, scripted, signal_at, monkeypatch
):
    config = recipe(checkpoint={"every": "4 steps", "keep": 1, "best": "val/t2v_r1"})
    with monkeypatch.context(), pytest.raises(Interrupted):
        signal_at(2)
        stages.train(config, tmp_path)
    monkeypatch.undo()
    assert all_steps(tmp_path / "0_short") == [2]
    scripted({"t2v_r1": 0.9}, {"t2v_r1": 0.1})
    stages.train(config, tmp_path)
    assert all_steps(tmp_path / "0_short") == [2, 4]


def test_an_evaluation_that_fails_loses_no_training(whole, recipe, tmp_path, scripted, monkeypatch):
    config = recipe(checkpoint={"every": "4 steps"}, evals=evals_of(recipe, {"at_start": True}))
    scripted(OSError("gone"))
    with pytest.raises(RuntimeError, match="at step 0 failed: OSError: gone"):
        stages.train(config, tmp_path)
    assert all_steps(tmp_path / "0_short") == []
    scripted({"t2v_r1": 0.9}, ValueError("no such clip"))
    with pytest.raises(ValueError, match="val/retrieval at step 2: no such clip"):
        stages.train(config, tmp_path)
    assert all_steps(tmp_path / "0_short") == [2]
    monkeypatch.undo()
    assert stages.train(config, tmp_path) == whole[1]
    assert_same(params_of(tmp_path / "0_short", 4), params_of(whole[0], 4))


@pytest.mark.parametrize("newest", [True, False])
def test_a_damaged_note_is_a_damaged_checkpoint(whole, recipe, tmp_path, newest):
    folder = tmp_path / "0_short"
    shutil.copytree(whole[0].parent, tmp_path, dirs_exist_ok=True)
    (folder / "metrics.json").unlink()
    for step in (4,) if newest else (2, 4):
        (folder / f"checkpoints/{step}/note/metadata").write_text("{")
    if newest:
        assert stages.train(recipe(), tmp_path) == whole[1]
        assert (folder / "unreadable_checkpoints" / "4").is_dir()
    else:
        with pytest.raises(ValueError, match="none of the checkpoints in .* can be read. Restore one"):
            stages.train(recipe(), tmp_path)


def test_a_signal_ends_the_run_at_once_while_evaluations_are_prepared(recipe, tmp_path, monkeypatch, capfd):
    def prepare(self):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(Evaluations, "prepare", prepare)
    with pytest.raises(Interrupted):
        stages.train(recipe(), tmp_path)
    assert "at step 0 of 4 in stage 'short', while its evaluations were prepared" in capfd.readouterr().err
