"""Two and four processes train as one does, and leave at the same step when only one of them is told to."""

import signal
import time

import numpy as np
import pytest

from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh
from vidlang.core.tree import flatten_paths
from vidlang.train.run_files import read_metrics
from vidlang.train.saved import all_steps, restore_params

# Clips of four videos of four scenes, with two texts each.
EVALUATED = 16

# Left by os._exit: with gloo on a crowded machine, jax was seen to spin for ever when Python had ended.
SCRIPT = """
import os
import sys
import jax
rank, count, port, corpus, workdir, duration, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 8 // int(count))
if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(rank))
sys.path.insert(0, folder)
import tiny_config
from vidlang.train.stages import train
config = tiny_config.get_config(corpus)
stage = config.stages[0]
stage.duration, config.mesh = duration, {"data": 2, "fsdp": 2, "tensor": 2}
evaluation = stage.evals[0]
evaluation["batch_size"], evaluation["data"]["split"] = 12, "train"  # sixteen clips: the second batch is filled up
stage.augment = {"flip": 0.5, "jitter": {"contrast": 0.4, "hue": 0.2}, "blur": {"sigma": (0.1, 1.0)}}
code = 0
try:
    train(config, workdir)
except SystemExit as end:
    code = end.code
jax.distributed.shutdown()
sys.stderr.flush()
os._exit(code)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def start(start_script, corpus):
    """Starts one training in `count` processes of eight devices together."""
    return lambda count, workdir, duration: start_script(SCRIPT, count, corpus, workdir, duration)


def finish(processes):
    """(exit codes, what they said on stderr)."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def outcome(workdir):
    """(losses of all steps, parameters in the end, metrics in the end) of a run."""
    folder, mesh = workdir / "0_short", make_mesh({"data": -1})
    losses = [record["loss"] for record in read_history(folder / "metrics.jsonl") if "loss" in record]
    params = flatten_paths(restore_params(folder, all_steps(folder)[-1], mesh))
    return losses, {name: np.asarray(leaf) for name, leaf in params.items()}, read_metrics(workdir)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """What one process with all eight devices gets."""
    workdir = tmp_path_factory.mktemp("alone")
    codes, said = finish(start(1, workdir, "8 steps"))
    assert codes == [0], said
    return outcome(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_as_one(count, alone, start, tmp_path):
    codes, said = finish(start(count, tmp_path, "8 steps"))
    assert codes == [0] * count, said
    (losses, params, metrics), (want_losses, want_params, want_metrics) = outcome(tmp_path), alone
    assert len(losses) == 8 and losses == pytest.approx(want_losses, rel=1e-5)
    assert params.keys() == want_params.keys()
    for name, leaf in want_params.items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)
    # Every clip once, though rows that fill up the last batch lie on some process.
    counts = {"val/videos": EVALUATED, "val/texts": 2 * EVALUATED, "val/missing": 0}
    assert {name: metrics[name] for name in counts} == counts
    assert metrics == pytest.approx(want_metrics, rel=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step(start, tmp_path):
    processes = start(2, tmp_path, "100000 steps")
    deadline = time.monotonic() + 200
    while not all_steps(tmp_path / "0_short") and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = finish(processes)
    assert codes == [143, 143], said
    newest = all_steps(tmp_path / "0_short")[-1]
    assert f"stopped by SIGTERM at step {newest} of 100000" in said[0]
