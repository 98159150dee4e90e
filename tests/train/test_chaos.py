"""Thirty faults of every kind over one training in four processes: it ends with the parameters of an undisturbed one,
bit for bit, and its log tells of each of them."""

import faulthandler
import json
import math
import os
import random
import signal
import sys

import numpy as np
import pytest

from tests.train.chaos_config import PROCESSES, STEPS, get_config
from tests.train.chaos_training import Training
from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train import sources
from vidlang.train.goodput import read_goodput
from vidlang.train.guard import read_batches
from vidlang.train.recipe import read_recipe
from vidlang.train.saved import all_steps, restore_params

pytestmark = pytest.mark.slow
# Eleven starts of four processes: four minutes of two cores, and on a crowded machine as many times that as it is
# crowded. The ten minutes that other tests have before they count as hanging are no measure here.
HANGING = 2400
# Another number in the environment makes other choices of whom to kill, what to damage and when.
SEED = int(os.environ.get("VIDLANG_CHAOS", 0))
# Spikes come before the first restart, after which ten losses must be known again.
SPIKES, WRONG = (11, 12, 13, 16, 17), (14, 19, 20, 30, 44, 55, 65)
# What comes together, and at which share of the steps the first of them does.
EVENTS = [
    (0.25, ["kill"]),
    (0.32, ["power", "half", "flip"]),
    (0.38, ["term", "full"]),
    (0.45, ["hang", "hang"]),
    (0.52, ["kill"]),
    (0.60, ["power", "half", "flip"]),
    (0.66, ["term", "full"]),
    (0.72, ["kill"]),
    (0.80, ["power", "half", "flip"]),
]
# Kilobytes: larger than the run's own files become, smaller than what any process writes of a checkpoint.
FULL = 110


def half(folder, rng):
    """A copy that broke off: of a checkpoint, what one process wrote is not there, or not all of it."""
    part = rng.choice(sorted(folder.glob("params/ocdbt.process_*")))
    for path in sorted(path for path in part.rglob("*") if path.is_file() and path.stat().st_size > 1000):
        if rng.random() < 0.5:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)


def flip(folder, rng):
    """A bit in each block of one file's data: of a single one somewhere, the file may make no use."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    path = rng.choice(sorted(files, key=str))
    content = bytearray(path.read_bytes())
    for block in range(0, len(content), 4096):
        content[rng.randrange(block, min(block + 4096, len(content)))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def kill(training, rng):
    victim = rng.randrange(PROCESSES)
    os.kill(training.processes()[victim], signal.SIGKILL)
    return [rf"^process {victim} was killed by SIGKILL; starting all again"]


def lose_power(training, rng):
    """All processes die at once; the newest checkpoint is half written, and the disk gave way under the one before."""
    training.kill_all()
    *_, before, newest = all_steps(training.stage)
    checkpoints = training.stage / "checkpoints"
    half(checkpoints / str(newest), rng)
    flip(checkpoints / str(before), rng)
    training.start()
    unreadable = [rf"checkpoints/{step} cannot be read" for step in (newest, before)]
    return [r"starts from its own checkpoint", *unreadable]


def fill_disk(training, rng):
    """Told to leave, the run saves; started again, it finds no room."""
    training.launcher.send_signal(signal.SIGTERM)
    training.end(143)
    training.start(kilobytes=FULL)
    training.end(2)
    training.start()
    return [r"stopped by SIGTERM at step", r"error: could not save step \d+"]


def hang(training, rng):
    """The data workers of two processes stop."""
    victims = rng.sample(range(PROCESSES), 2)
    pids = training.processes()
    for victim in victims:
        for worker in training.children(pids[victim], "spawn_main"):
            os.kill(worker, signal.SIGSTOP)
    return [rf"^\[{victim}\] .*Starting the data workers anew at step" for victim in victims]


THROW = {"kill": kill, "power": lose_power, "term": fill_disk, "hang": hang}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The clips, and which batches of them shall be no number or a spike."""
    root = tmp_path_factory.mktemp("corpus")
    recipe = read_recipe(get_config(str(root)))

    def rows(steps):
        for step in steps:
            with sources.train_stream(recipe, 0, sources.tables(recipe.stages[0]), start_step=step) as stream:
                yield next(stream)["index_B"].tolist()

    (root / "poison.json").write_text(json.dumps({"wrong": list(rows(WRONG)), "spikes": list(rows(SPIKES))}))
    return root


def final_params(training):
    params = restore_params(training.stage, STEPS, make_mesh({"data": -1}))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(params).items()}


def losses(training):
    """By step; what is no number as None, for it is not equal to itself."""
    history = [record for record in read_history(training.stage / "metrics.jsonl") if "loss" in record]
    return [(record["step"], record["loss"] if math.isfinite(record["loss"]) else None) for record in history]


def throw_all(training, rng):
    """Throws all events, each when the training is running again, and looks for each fault in what was said since."""
    training.start()
    for share, faults in EVENTS:

        def due(goal=share * STEPS):
            # With three checkpoints, one is left where two are damaged.
            return training.runs() and training.step() >= goal and len(all_steps(training.stage)) > 2

        training.wait_for(due, f"be at {share:.0%} and running, before {faults}")
        since = len(training.log)
        told = THROW[faults[0]](training, rng)
        assert len(told) == len(faults)
        for fault, words in zip(faults, told, strict=True):

            def seen(words=words, since=since):
                return training.has_said(words, since)

            training.wait_for(seen, f"tell of {fault}, {words!r}")
    training.end(0)


def test_a_training_survives_thirty_faults(repository, corpus, tmp_path):
    faulthandler.dump_traceback_later(HANGING, exit=True, file=sys.__stderr__)
    count = sum(len(faults) for _, faults in EVENTS) + len(SPIKES) + len(WRONG)
    assert count == 30
    whole = Training(repository, corpus, tmp_path / "whole")
    whole.start()
    whole.end(0)
    training = Training(repository, corpus, tmp_path / "chaos")
    try:
        throw_all(training, random.Random(SEED))
    finally:
        training.stop()

    for step in WRONG:
        assert training.has_said(rf"(loss|grad_norm) is nan at step {step} of .*: left out"), step
    for step in SPIKES:
        assert training.has_said(rf"the loss of step {step} of .*, a spike"), step
    assert losses(training) == losses(whole)
    assert [loss is None for _, loss in losses(training)] == [step in WRONG for step in range(STEPS)]
    undisturbed, disturbed = final_params(whole), final_params(training)
    for name, leaf in undisturbed.items():
        np.testing.assert_array_equal(disturbed[name], leaf, err_msg=name)
    written = {(record["step"], record["why"]) for record in read_batches(training.stage)}
    assert written == {(step, "no number") for step in WRONG} | {(step, "spike") for step in SPIKES}
    found = read_goodput(training.workdir)
    assert found.restarts >= len(EVENTS) - 1 and found.repeated > 0 and found.skipped >= len(WRONG)
    assert 0 < found.share < 0.9
    assert training.has_said(r"goodput [\d.]+% of .* restarts, \d+ steps done again, \d+ left out")
    print(f"{count} faults: {found}")
