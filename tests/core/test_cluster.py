"""What the environment means, who is asked, and what becomes of processes that do not agree."""

import os
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from vidlang.core import cluster, versions

OWN = {"VIDLANG_COORDINATOR": "host0:1234", "VIDLANG_PROCESSES": "4", "VIDLANG_PROCESS": "3"}
STEP = {
    "SLURM_JOB_ID": "10",
    "SLURM_STEP_NODELIST": "gpu[07-08],other",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NUM_NODES": "3",
}


@pytest.fixture
def joined(monkeypatch):
    """joined(environment) -> what JAX is asked to connect to: [] or [(positional arguments, others)]."""
    for name in list(os.environ):
        if name.startswith(("VIDLANG_", "SLURM_", "KUBERNETES_", "OMPI_")):
            monkeypatch.delenv(name)
    calls, met = [], []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr(cluster, "meet", lambda place, facts, seconds: met.append((place.address, seconds)))
    before = jax.config.jax_enable_preemption_service

    def run(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cluster.join()
        assert len(met) == len(calls), "nobody connects who has not met the others"
        return calls

    yield run
    jax.config.update("jax_enable_preemption_service", before)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # the batch script itself
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # a step of one task
        {**STEP, "VIDLANG_CLUSTER": "none"},
    ],
)
def test_alone_nothing_is_connected(joined, environment):
    assert joined(environment) == []


def test_own_variables_say_where(joined):
    settings = {"VIDLANG_LOCAL_DEVICES": "2,3", "VIDLANG_HEARTBEAT_SECONDS": "7", "VIDLANG_JOIN_SECONDS": "9"}
    ((given, options),) = joined({**OWN, **STEP, **settings})
    assert given == ("host0:1234", 4, 3)
    assert options["local_device_ids"] == [2, 3]
    assert (options["heartbeat_timeout_seconds"], options["initialization_timeout"]) == (7, 9)
    assert options["cluster_detection_method"] == "deactivate", "the environment's SLURM is not asked"


def test_in_srun_jax_finds_the_others(joined):
    ((given, options),) = joined(STEP)
    address, processes, process = given
    assert address.startswith("gpu07:") and (processes, process) == (6, 5)
    assert options["local_device_ids"] == [1], "the second task of a node has its second GPU"


def test_one_task_a_node_has_all_gpus_of_it(joined):
    ((_, options),) = joined({**STEP, "SLURM_STEP_NUM_NODES": "6"})
    assert options["local_device_ids"] is None


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"VIDLANG_PROCESSES": "2"}, "has VIDLANG_PROCESSES, and lacks VIDLANG_COORDINATOR and VIDLANG_PROCESS;"),
        ({**OWN, "VIDLANG_COORDINATOR": "host0"}, "VIDLANG_COORDINATOR is host:port.*found 'host0'"),
        ({**OWN, "VIDLANG_PROCESS": "4"}, "number of this one, from 0; found '4' and '4'"),
        ({**OWN, "VIDLANG_PROCESS": "-1"}, "found '4' and '-1'"),
        ({**OWN, "VIDLANG_LOCAL_DEVICES": "all"}, "as in 0,1; found 'all'"),
        ({**OWN, "VIDLANG_HEARTBEAT_SECONDS": "0"}, "VIDLANG_HEARTBEAT_SECONDS is a whole number of seconds.*'0'"),
        ({"VIDLANG_CLUSTER": "tpu"}, "VIDLANG_CLUSTER is 'auto'.*found 'tpu'"),
        ({"VIDLANG_CLUSTER": "auto"}, "VIDLANG_CLUSTER=auto, and JAX finds neither"),
    ],
)
def test_a_wrong_environment_is_one_sentence(joined, environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        joined(environment)


class Line:
    """JAX's client as far as it is used here: a dictionary that all threads see."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nothing there")
            return self.values[key]

    def key_value_dir_get(self, folder):
        with self.changed:
            return [(key, value) for key, value in self.values.items() if key.startswith(f"{folder}/")]


def agreement(monkeypatch, facts):
    """What each process is told when process i calls `agree(facts[i])`; "" when it may go on."""
    line, told, here = Line(), [""] * len(facts), threading.local()
    monkeypatch.setattr(cluster, "SLICE_MS", 20)
    monkeypatch.setattr(cluster, "_client", lambda: (line, here.process, len(facts)))
    # Each process counts its own calls.
    monkeypatch.setattr(cluster, "_count_agreement", lambda: 1)

    def one(process):
        here.process = process
        try:
            cluster.agree(facts[process])
        except ValueError as error:
            told[process] = str(error)

    threads = [threading.Thread(target=one, args=(process,)) for process in range(len(facts))]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # several slices: those who came first wait on
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    return told


def test_a_different_fact_is_told_to_all(monkeypatch):
    config = {"seed": 1, "stages": [{"optimizer": {"learning_rate": 0.1}, "note": "x" * 500}]}
    other = {"seed": 1, "stages": [{"optimizer": {"learning_rate": 0.2}, "note": "y" * 500}]}
    same, told = (
        agreement(monkeypatch, [cluster.parts("config", each, depth=3) for each in configs])
        for configs in ([config] * 3, [config, config, other])
    )
    assert same == ["", "", ""]
    assert told[0] and set(told) == {told[0]}
    host = socket.gethostname()
    found = f"""config.stages[0].optimizer is '{{"learning_rate": 0.1}}' on process 0 ({host}) and """
    assert f"""{found}'{{"learning_rate": 0.2}}' on process 2 ({host})""" in told[0]
    assert "config.stages[0].note is something with the digest" in told[0], "long values are compared, not shown"
    assert "seed" not in told[0]


def test_who_waits_for_one_that_leaves_instead_leaves_too(monkeypatch, capsys):
    line = Line()
    line.key_value_set("vidlang/left/1", "process 1 on host1 leaves with exit code 2")
    monkeypatch.setattr(cluster, "SLICE_MS", 20)
    monkeypatch.setattr(cluster, "_client", lambda: (line, 0, 2))
    with pytest.raises(SystemExit) as end:
        cluster.agree({"a": "x"})
    assert end.value.code == cluster.LOST
    assert capsys.readouterr().err == "not waiting any longer: process 1 on host1 leaves with exit code 2\n"


def test_alone_everybody_agrees():
    cluster.agree({"anything": "x"})


def test_alone_leaving_changes_nothing():
    with pytest.raises(SystemExit) as end, cluster.leaving():
        raise SystemExit(7)
    assert end.value.code == 7
    with pytest.raises(ZeroDivisionError), cluster.leaving():
        raise ZeroDivisionError


def test_the_code_is_every_python_file_by_path_and_text(tmp_path):
    def write(path, text, root=tmp_path / "one"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        return versions.code_digest(root)

    seen = [write("vidlang/a.py", "x = 1"), write("configs/b.py", "y"), write("vidlang/a.py", "x = 2")]
    seen.append(write("vidlang/deep/a.py", "x = 2"))
    assert len(set(seen)) == 4
    assert write("vidlang/notes.txt", "no code") == write("runs/a.py", "no code of ours") == seen[-1]
    assert write("vidlang/a.py", "x", tmp_path / "two") != write("configs/a.py", "x", tmp_path / "three")
    assert versions.facts()["the packages"].startswith(f"jax {jax.__version__} ")


LEAVES = """
import multiprocessing, os, sys, time
from vidlang.core import cluster
with cluster.leaving():
    cluster.join()
    cluster.agree({"a fact": "same"})
    process = int(os.environ["VIDLANG_PROCESS"])
    if process == 1:
        # It holds stderr open; who waits for the end of that sees that it was ended as well.
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()
        raise SystemExit(2)
    time.sleep(60)
"""


@pytest.mark.slow
def test_one_that_leaves_by_mistake_is_noticed_by_the_other_within_the_heartbeat(repository):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    own = {"VIDLANG_COORDINATOR": address, "VIDLANG_PROCESSES": "2", "VIDLANG_HEARTBEAT_SECONDS": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVES],
            cwd=repository,
            env={**os.environ, **own, "VIDLANG_PROCESS": str(process)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate(timeout=50)[1] for process in reversed(processes)][::-1]
    finally:
        for process in processes:
            process.kill()
    assert processes[1].returncode == 2 and "leaves with exit code 2" in said[1]
    assert processes[0].returncode not in (0, None) and "stopped sending heartbeats" in said[0]
