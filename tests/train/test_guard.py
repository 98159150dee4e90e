"""A step that is no number is left out or stops the run; its clips, and those of a spike, are written down by name."""

import json
from pathlib import Path

import numpy as np
import pytest

import vidlang.objectives
from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.data.broken import describe
from vidlang.train import sources, stages
from vidlang.train.guard import Watch, read_batches
from vidlang.train.recipe import Guard, read_recipe
from vidlang.train.saved import all_steps, restore_params

vidlang.objectives.__path__.append(str(Path(__file__).parent / "extensions" / "objectives"))


def params_of(folder, step):
    params = restore_params(folder / "0_short", step, make_mesh({"data": -1}))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(params).items()}


def same(got, want):
    return all(np.array_equal(got[name], want[name]) for name in want)


def losses(folder):
    return [record["loss"] for record in read_history(folder / "0_short/metrics.jsonl")]


@pytest.fixture(scope="module")
def rows_of(recipe):
    """The rows of the table that the batch of a step is made of."""

    def find(step):
        chosen = read_recipe(recipe(evals=()))
        with sources.train_stream(chosen, 0, sources.tables(chosen.stages[0]), start_step=step) as stream:
            return tuple(next(stream)["index_B"].tolist())

    return find


@pytest.fixture(scope="module")
def config(recipe, rows_of):
    """A run whose batches of these steps are poisoned, saved at every step."""

    def make(steps, *, guard, factor=float("nan"), duration="5 steps", every="1 step"):
        poisoned = {"name": "poisoned", "batches": tuple(map(rows_of, steps)), "factor": factor}
        changes = {"objective": poisoned, "guard": guard, "duration": duration, "evals": ()}
        return recipe(checkpoint={"every": every, "keep": 9}, **changes)

    return make


@pytest.mark.slow
def test_a_step_left_out_changes_nothing_but_its_number(config, rows_of, recipe, tmp_path):
    stages.train(config([1, 3], guard={"skip": 1}), tmp_path)
    params = {step: params_of(tmp_path, step) for step in all_steps(tmp_path / "0_short")}
    assert [same(params[step + 1], params[step]) for step in range(1, 5)] == [True, False, True, False]
    history = read_history(tmp_path / "0_short/metrics.jsonl")
    assert [record["skipped"] for record in history] == [0, 1, 0, 1, 0]
    assert np.isnan([record["loss"] for record in history]).tolist() == [False, True, False, True, False]
    first, second = read_batches(tmp_path / "0_short")
    clips = sources.tables(read_recipe(recipe()).stages[0])[0]
    assert (first["step"], second["step"]) == (1, 3) and first["loss"] == "nan" and first["why"] == "no number"
    assert tuple(first["rows"]) == rows_of(1) and first["clips"] == [describe(clips, row) for row in rows_of(1)]
    json.loads((tmp_path / "0_short/batches.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)


@pytest.mark.slow
def test_learning_rates_follow_the_step_whatever_was_left_out(config, tmp_path):
    """What the optimizer went by is what is written: after a skip, the next update is as large as its rate says."""
    plain = {"learning_rate": 0.1, "name": "sgd", "momentum": 0.0, "clip_norm": None}
    changes = {}
    for poisoned in ([], [1]):
        made = config(poisoned, guard={"skip": 1}, duration="3 steps")
        made["stages"][0]["optimizer"] = plain
        stages.train(made, folder := tmp_path / str(len(poisoned)))
        rates = [record["learning_rate"] for record in read_history(folder / "0_short/metrics.jsonl")]
        norms = [record["grad_norm"] for record in read_history(folder / "0_short/metrics.jsonl")]
        before, after = params_of(folder, 2), params_of(folder, 3)
        moved = np.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before))
        changes[len(poisoned)] = moved / norms[2]
        assert changes[len(poisoned)] == pytest.approx(rates[2], rel=1e-3)
    assert changes[0] == pytest.approx(changes[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("poisoned", "skip"), [([2], 0), ([1, 2], 1)], ids=str)
def test_one_more_in_a_row_stops_the_run_before_anything_is_saved(config, tmp_path, poisoned, skip):
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2 of stage 'short'.*the last good one is step"):
        stages.train(config(poisoned, guard={"skip": skip}), tmp_path)
    assert all_steps(tmp_path / "0_short") == [1, 2]
    assert [record["step"] for record in read_batches(tmp_path / "0_short")] == poisoned
    with pytest.raises(FloatingPointError):
        stages.train(config(poisoned, guard={"skip": skip}), tmp_path)
    # More patience, the same run: it goes on, and writes no batch twice.
    stages.train(config(poisoned, guard={"skip": 2}), tmp_path)
    assert [record["step"] for record in read_batches(tmp_path / "0_short")] == poisoned


@pytest.mark.slow
def test_a_guard_that_has_nothing_to_do_changes_nothing(config, tmp_path):
    """It is another program, which XLA fuses in other places, so the last bit may differ."""
    for skip in (0, 3):
        stages.train(config([], guard={"skip": skip}), tmp_path / str(skip))
    want, got = (params_of(tmp_path / skip, 5) for skip in "03")
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert losses(tmp_path / "3") == pytest.approx(losses(tmp_path / "0"), rel=1e-5)
    assert not read_batches(tmp_path / "0/0_short")


def test_a_spike_is_written_down_and_changes_nothing(config, rows_of, tmp_path):
    for spike in (0, 3.0):
        made = config([12], guard={"spike": spike}, factor=50.0, duration="14 steps", every="14 steps")
        stages.train(made, tmp_path / str(spike))
    assert same(params_of(tmp_path / "3.0", 14), params_of(tmp_path / "0", 14))
    assert not read_batches(tmp_path / "0/0_short")
    (record,) = read_batches(tmp_path / "3.0/0_short")
    assert (record["step"], record["why"], tuple(record["rows"])) == (12, "spike", rows_of(12))
    assert record["loss"] == pytest.approx(losses(tmp_path / "3.0")[12])


def watched(losses, **guard):
    """The steps at which a watch finds a spike."""
    found, watch = [], Watch(Guard(**guard), "short")
    watch._write_down = lambda step, *others: found.append(step)
    for step, loss in enumerate(losses):
        watch.look(step, {"loss": loss, "grad_norm": 1.0}, {}, None)
    return found


def test_what_a_spike_is():
    steady = [2.0] * 20
    assert watched([*steady, 5.9, 6.1, 2.0, 7.0]) == [21, 23]
    assert watched([*steady, 5.9, 6.1], spike=2.9) == [20, 21]
    assert watched([*steady, 50.0], spike=0) == []
    assert watched([2.0] * 3 + [50.0]) == [], "too few to know what is usual"
    assert watched([-2.0] * 20 + [50.0]) == [], "so many times less than nothing is no size"
    assert watched([1.0] * 50 + [10.0] * 101 + [29.0]) == list(range(50, 100)), "the median follows the training"


@pytest.mark.parametrize(
    ("guard", "sentence"),
    [
        ({"skip": -1}, "guard.skip is how many steps in a row may be left out, from 0 on; found -1"),
        ({"spike": 0.5}, "guard.spike is a factor on the usual loss, above 1, or 0 for never; found 0.5"),
        ({"skips": 1}, r"stages\[0\].guard has an unknown key 'skips' \(did you mean 'skip'\?\)"),
    ],
    ids=str,
)
def test_mistakes(recipe, guard, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_recipe(recipe(guard=guard))
