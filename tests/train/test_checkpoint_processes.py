"""Two processes save together, and one of them cannot write its part, or dies while it does."""

import os
import socket
import subprocess
import sys

import pytest

# Each process holds one half of the parameters, of numbers that no compression makes small.
SCRIPT = """
import os, resource, signal, sys, threading
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from vidlang.core import cluster
from vidlang.core.sharding import make_mesh
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.recipe import CheckpointPlan
from vidlang.train.saved import make_note
from vidlang.train.step import TrainState

folder, process, fault = sys.argv[1], os.environ["VIDLANG_PROCESS"], sys.argv[2]

def put(value, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])

def state_of(step):
    noise = np.random.default_rng(step).random((2, 200_000))
    return TrainState(put(np.int32(step)), {"a": put(noise, "fsdp")}, {"m": put(np.ones(2))})

def go_wrong(checkpoints):
    if fault.startswith(f"full {process}"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    if fault == f"killed {process}":
        before = checkpoints._meeting._meet
        def meet(**options):
            if threading.current_thread() is threading.main_thread():
                return before(**options)
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoints._meeting._meet = meet

def run():
    note = make_note({"seed": 0, "stages": ({"name": "a", "model": "m"},)}, 0, {}, {})
    with opened(Checkpoints(folder, CheckpointPlan(keep=9), note)) as checkpoints:
        found = checkpoints.restore(state_of(0))
        step = 1 if found is None else int(found.step) + 1
        print("begins with step", step, flush=True)
        checkpoints.save(step, state_of(step))
        checkpoints.wait()
        go_wrong(checkpoints)
        checkpoints.save(step + 1, state_of(step + 1))
        if "mistake" in fault:
            raise ValueError("both have made it")
        while fault.startswith("killed"):  # as steps do, until there is nobody to exchange with
            multihost_utils.process_allgather(np.ones(1))

with cluster.leaving():
    cluster.join()
    mesh = make_mesh({"data": 1, "fsdp": -1})
    try:
        run()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2)
"""


@pytest.fixture
def saved(repository, tmp_path):
    """saved(fault) -> (exit code, stdout, stderr) of each of two processes, which go on with what was saved before."""

    def run(fault):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
        common = {"XLA_FLAGS": flags, "PYTHONPATH": str(repository), "VIDLANG_COORDINATOR": address}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(tmp_path), fault],
                env={**os.environ, **common, "VIDLANG_PROCESSES": "2", "VIDLANG_PROCESS": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        try:
            said = [process.communicate(timeout=240) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]

    return run


def assert_goes_on(found):
    for code, out, said in found:
        assert code == 0 and "begins with step 2\n" in out, said


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
def test_where_one_cannot_write_all_leave_and_go_on_later(saved, full):
    found = saved(f"full {full}")
    code, _, said = found[full]
    assert code == 2 and "error: could not save step 2 to " in said
    assert "the last complete checkpoint is step 1" in said
    code, _, said = found[1 - full]
    assert code == 75, said
    assert f"not waiting any longer: process {full} on {socket.gethostname()} leaves with exit code 2" in said
    assert_goes_on(saved("none"))


@pytest.mark.slow
def test_a_mistake_is_told_though_the_other_cannot_write_its_part(saved):
    found = saved("full 1 mistake")
    assert [code for code, _, _ in found] == [2, 2], found
    for _, _, said in found:
        assert "error: both have made it" in said


@pytest.mark.slow
def test_who_lost_another_does_not_wait_for_its_part_of_a_save(saved):
    (code, _, said), (killed, _, _) = saved("killed 1")
    assert killed == -9
    assert code == 75, said
    assert "leaves with exit code 75: it lost another process" in said
    assert_goes_on(saved("none"))
