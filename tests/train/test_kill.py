"""Killed at any moment, started again by the same command, a run ends bit for bit where it would have."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train.saved import restore_params

STEPS = 60


@pytest.fixture(scope="module")
def start(repository, tmp_path_factory):
    """Starts a training in its own process, of two devices."""
    corpus = tmp_path_factory.mktemp("corpus")
    # The last of two flags of one name counts.
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}

    def run(workdir, workers=0):
        config = f"--config={repository}/tests/launch/tiny_config.py:{corpus}"
        command = [sys.executable, "-m", "launch.train", config, f"--workdir={workdir}"]
        command += [f"--config.runtime.workers={workers}"]
        return subprocess.Popen(
            command,
            cwd=repository,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return run


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    out, err = (process := start(workdir)).communicate(timeout=300)
    assert process.returncode == 0, out + err
    return workdir


def final_params(workdir):
    params = restore_params(workdir / "0_short", STEPS, make_mesh({"data": -1}))
    return {name: np.asarray(leaf) for name, leaf in flatten_paths(params).items()}


def losses(workdir):
    history = read_history(workdir / "0_short" / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in history if "loss" in record]


def wait_for_step(workdir, step, process):
    """Returns when metrics.jsonl has reached a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        known = losses(workdir)
        if known and known[-1][0] >= step:
            return
        time.sleep(0.01)


# (signal, data workers) of the starts that are killed one after the other: every pair.
KILLS = [
    (signal.SIGTERM, 0),
    (signal.SIGKILL, 2),
    (signal.SIGINT, 2),
    (signal.SIGKILL, 0),
    (signal.SIGTERM, 2),
    (signal.SIGKILL, 2),
]


@pytest.mark.slow
def test_killed_anywhere_and_started_again(start, whole, tmp_path):
    rng = random.Random(0)
    for number, (signum, workers) in enumerate(KILLS):
        process = start(tmp_path, workers)
        # Somewhere in a ninth of the run, or anywhere inside a step, a save or an evaluation.
        wait_for_step(tmp_path, rng.randrange(9 * number, 9 * number + 8), process)
        time.sleep(rng.uniform(0, 0.05))
        # To the whole group, as a terminal or a batch system would.
        os.killpg(process.pid, signum)
        out, err = process.communicate(timeout=300)
        assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), out + err
        if signum != signal.SIGKILL:
            assert "the same command goes on from there" in err and "Traceback" not in err
    out, err = (process := start(tmp_path, workers=2)).communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert losses(tmp_path) == losses(whole)
    for name, leaf in final_params(whole).items():
        np.testing.assert_array_equal(final_params(tmp_path)[name], leaf, err_msg=name)
