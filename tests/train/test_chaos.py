"""Faults of every kind over one training: it ends with the parameters of an undisturbed one, bit for bit, and says why
it took so long."""

import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train.chaos_config import STEPS, get_config
from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train import sources
from vidlang.train.goodput import read_goodput
from vidlang.train.guard import read_batches
from vidlang.train.recipe import read_recipe
from vidlang.train.saved import all_steps, restore_params

pytestmark = pytest.mark.slow
POISONED = (23, 24, 61)
# Kilobytes: larger than metrics.jsonl becomes, smaller than a checkpoint's data.
FULL = 40
# What is done, and what the log says of it.
FAULTS = {
    "term": r"stopped by SIGTERM at step",
    "kill": r"was killed by SIGKILL; starting all again",
    "power": r"starts from its own checkpoint",
    "half": r"cannot be read",
    "flip": r"its numbers are not those that were saved|cannot be read",
    "full": r"error: could not save step \d+",
    "hang": r"Starting the data workers anew at step",
}
ORDER = ["kill", "half", "term", "flip", "hang", "full", "power"]
# VIDLANG_CHAOS=30 throws so many, of which this is the beginning.
FAULTS_THROWN = (ORDER * 9)[: int(os.environ.get("VIDLANG_CHAOS", len(ORDER)))]


class Training:
    """A training of two processes under its launcher, started again and again; `log` is all that it ever said."""

    def __init__(self, repository, corpus, workdir):
        self.workdir, self.stage, self.log = workdir, workdir / "0_short", []
        self._repository = repository
        self._command = [sys.executable, "-m", "launch.local", "--processes=2", "--restarts=99", "--grace=5"]
        self._command += ["--cpu_devices=1", f"--config=tests/train/chaos_config.py:{corpus}"]
        self._command += [f"--workdir={workdir}"]

    def start(self, kilobytes=None):
        """With a limit in kilobytes, no file becomes larger: to whoever writes, that is a full disk."""
        limited = ["bash", "-c", f'ulimit -S -f {kilobytes}; exec "$@"', "bash"] if kilobytes else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [*limited, *self._command]
        self.launcher = subprocess.Popen(command, cwd=self._repository, start_new_session=True, **pipes)
        self._reader = threading.Thread(target=lambda: self.log.extend(self.launcher.stdout), daemon=True)
        self._reader.start()

    def step(self):
        with contextlib.suppress(ValueError):  # it is just being written anew
            return max((record["step"] for record in read_history(self.stage / "metrics.jsonl")), default=-1)
        return -1

    def wait_for(self, met, seconds=150):
        """Until the condition is met, or the training is over."""
        deadline = time.monotonic() + seconds
        while not met() and self.launcher.poll() is None:
            assert time.monotonic() < deadline, "".join(self.log[-60:])
            time.sleep(0.02)

    def end(self, code):
        """Waits for the launcher, which leaves with this exit code."""
        self.launcher.wait(timeout=150)
        self._reader.join(timeout=5)
        assert self.launcher.returncode == code, "".join(self.log[-60:])

    def pids(self, word="launch.train", parent=None):
        """Children that have this word in their command line."""
        tasks = Path(f"/proc/{parent or self.launcher.pid}/task")
        children = [pid for file in tasks.glob("*/children") for pid in map(int, file.read_text().split())]
        return [pid for pid in children if word in Path(f"/proc/{pid}/cmdline").read_text()]

    def said(self):
        return "".join(self.log)

    def kill_all(self):
        """As when the power fails."""
        pids = self.pids()
        self.launcher.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.end(-signal.SIGKILL)


def half(folder, rng):
    """A copy that broke off: of the newest checkpoint, what one process wrote is not there, or not all of it."""
    part = rng.choice(sorted(folder.glob("params/ocdbt.process_*")))
    files = [path for path in part.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for path in sorted(files):
        if rng.random() < 0.5:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)


def flip(folder, rng):
    """One bit of the data."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 5000]
    path = rng.choice(sorted(files, key=str))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def throw(training, fault, rng):
    """Makes one thing go wrong, and afterwards starts the training again where its launcher does not."""
    if fault == "term":
        training.launcher.send_signal(signal.SIGTERM)
        training.end(143)
    elif fault == "kill":
        os.kill(rng.choice(training.pids()), signal.SIGKILL)
        return
    elif fault == "hang":
        before = training.said().count("Starting the data workers anew")
        workers = [pid for parent in training.pids() for pid in training.pids("spawn_main", parent)]
        os.kill(rng.choice(workers), signal.SIGSTOP)
        training.wait_for(lambda: training.said().count("Starting the data workers anew") > before)
        return
    elif fault == "full":
        training.launcher.send_signal(signal.SIGTERM)
        training.end(143)
        training.start(kilobytes=FULL)
        training.end(2)
    else:
        training.kill_all()
        if fault != "power":
            newest = all_steps(training.stage)[-1]
            {"half": half, "flip": flip}[fault](training.stage / "checkpoints" / str(newest), rng)
    training.start()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The clips, and which batches of them shall be no number."""
    root = tmp_path_factory.mktemp("corpus")
    recipe = read_recipe(get_config(str(root)))
    batches = []
    for step in POISONED:
        with sources.train_stream(recipe, 0, sources.tables(recipe.stages[0]), start_step=step) as stream:
            batches.append(next(stream)["index_B"].tolist())
    (root / "poison.json").write_text(json.dumps(batches))
    return root


def final_params(training):
    params = restore_params(training.stage, STEPS, make_mesh({"data": -1}))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(params).items()}


def losses(training):
    """By step; what is no number as None, for it is not equal to itself."""
    history = [record for record in read_history(training.stage / "metrics.jsonl") if "loss" in record]
    return [(record["step"], record["loss"] if math.isfinite(record["loss"]) else None) for record in history]


def test_a_training_survives_what_clusters_do(repository, corpus, tmp_path):
    whole = Training(repository, corpus, tmp_path / "whole")
    whole.start()
    whole.end(0)
    training, rng = Training(repository, corpus, tmp_path / "chaos"), random.Random(0)
    training.start()
    for number, fault in enumerate(FAULTS_THROWN):
        goal = STEPS * (number + 1) // (len(FAULTS_THROWN) + 2)
        # With two checkpoints there is one before the newest.
        training.wait_for(lambda goal=goal: training.step() >= goal and len(all_steps(training.stage)) > 1)
        time.sleep(rng.uniform(0, 0.2))
        said = len(training.log)
        throw(training, fault, rng)
        training.wait_for(lambda fault=fault, said=said: re.search(FAULTS[fault], "".join(training.log[said:])))
        assert re.search(FAULTS[fault], "".join(training.log[said:])), f"the log does not tell of {fault}"
    training.end(0)

    assert losses(training) == losses(whole)
    for name, leaf in final_params(whole).items():
        np.testing.assert_array_equal(final_params(training)[name], leaf, err_msg=name)
    assert sorted(record["step"] for record in read_batches(training.stage)) == list(POISONED)
    assert [loss is None for _, loss in losses(training)] == [step in POISONED for step in range(STEPS)]
    found = read_goodput(training.workdir)
    starts = training.said().count("starts from its own checkpoint")
    assert found.restarts >= starts >= len(FAULTS_THROWN) // 2, "a fault may come while another is being recovered from"
    assert found.repeated > 0 and found.skipped >= len(POISONED) and 0 < found.share < 0.9
    assert re.search(r"goodput [\d.]+% of .* restarts, \d+ steps done again, \d+ left out", training.said())
