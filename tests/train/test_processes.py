"""Two processes train as one does, and leave at the same step when only one of them is told to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from vidlang.train.saved import all_steps

# Left by os._exit: with gloo on a crowded machine, jax was seen to spin for ever when Python had ended.
SCRIPT = """
import os
import sys
import jax
rank, count, port, corpus, workdir, duration, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4 // int(count))
if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(rank))
sys.path.insert(0, folder)
import tiny_config
from vidlang.train.stages import train
config = tiny_config.get_config(corpus)
stage = config.stages[0]
stage.duration, config.mesh = duration, {"data": 2, "fsdp": 2}
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


@pytest.fixture
def start(repository, corpus):
    """Starts one training in `count` processes of four devices together."""

    def run(count, workdir, duration):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        # How many devices there are is said to each process by itself.
        flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(repository)}
        arguments = [str(count), str(port), str(corpus), str(workdir), duration, str(repository / "tests" / "launch")]
        return [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(rank), *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    return run


def finish(processes):
    """(exit codes, what they said on stderr)."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


@pytest.mark.slow
def test_two_processes_train_as_one(start, tmp_path):
    results = []
    for count in (1, 2):
        workdir = tmp_path / str(count)
        codes, said = finish(start(count, workdir, "12 steps"))
        assert codes == [0] * count, said
        results.append(json.loads((workdir / "metrics.json").read_text()))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


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
