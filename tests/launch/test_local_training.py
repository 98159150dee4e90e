"""Real trainings in several real processes: one that is killed, one that stays away, two that do not agree."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidlang.core.metrics import read_history
from vidlang.train.run_files import read_metrics
from vidlang.train.saved import all_steps

pytestmark = pytest.mark.slow
# Eight pretended devices are this process's own affair.
ENVIRONMENT = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}


def start(repository, *arguments):
    """launch.local with two processes of two devices; of two flags of one name the last counts."""
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--cpu_devices=2", "--restarts=1", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=repository, env=ENVIRONMENT, **pipes)


def finished(process):
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, err


def losses(workdir):
    history = read_history(workdir / "0_short" / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in history if "loss" in record]


def pid_of(launcher, number):
    """The pid of one of a launcher's processes."""
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"VIDLANG_PROCESS={number}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError(f"process {number} does not run")


def test_one_is_killed_and_the_run_ends_as_an_undisturbed_one(repository, tiny_config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, out, err = finished(start(repository, tiny_config, f"--workdir={whole}"))
    assert code == 0, err
    assert "[0] batch 8: 4 in each of 2 processes, 2 on each device" in out
    assert "loss" in out.splitlines()[-1] or "val/" in out.splitlines()[-1]

    launcher = start(repository, tiny_config, f"--workdir={killed}")
    deadline = time.monotonic() + 120
    while not all_steps(killed / "0_short") or losses(killed)[-1][0] < 20:
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    os.kill(pid_of(launcher, 1), signal.SIGKILL)
    code, out, err = finished(launcher)
    assert code == 0, err
    assert time.monotonic() - began < 120
    assert "process 1 was killed by SIGKILL; starting all again, 1 of 1" in err
    (again,) = [line for line in out.splitlines() if "starts from its own checkpoint" in line]
    assert again.startswith("[0] ")
    assert losses(killed) == losses(whole)
    assert read_metrics(killed) == read_metrics(whole)


def test_one_stays_away_and_the_others_go_on(repository, tiny_config, tmp_path):
    fewer = ["--processes=4", "--cpu_devices=1", "--restarts=0", "--fewer=2"]
    launcher = start(repository, *fewer, tiny_config, f"--workdir={tmp_path}/run")
    deadline = time.monotonic() + 240
    while not all_steps(tmp_path / "run" / "0_short"):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pid_of(launcher, 3), signal.SIGKILL)
    code, out, err = finished(launcher)
    assert code == 0, err
    assert "process 3 was killed by SIGKILL; going on with 3 of 4 processes" in err
    # Eight clips do not divide over three processes.
    assert "ended with exit code 2; going on with 2 of 4 processes" in err
    assert "[0] batch 8: 2 in each of 4 processes" in out and "[0] batch 8: 4 in each of 2 processes" in out
    assert "starts from its own checkpoint" in out
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(60))


def by_hand(checkouts, arguments, folders=None):
    """(exit codes, what was said on stderr) of two processes, each of its own checkout with its own arguments.

    They run in their `folders`, in those of their checkouts if not given.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.train", *own],
            cwd=folder,
            env={
                **ENVIRONMENT,
                "VIDLANG_COORDINATOR": address,
                "VIDLANG_PROCESSES": "2",
                "VIDLANG_PROCESS": str(process),
                "PYTHONPATH": str(checkout),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, (checkout, own, folder) in enumerate(zip(checkouts, arguments, folders or checkouts, strict=True))
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def sentences(said):
    """What each process called an error."""
    return [[line for line in each.splitlines() if line.startswith("error: ")] for each in said]


def test_another_config_is_told_by_all_before_anything_is_made(repository, tiny_config, tmp_path):
    common = [tiny_config, f"--workdir={tmp_path}/run"]
    rate = "--config.stages[0].optimizer.learning_rate=0.5"
    codes, said = by_hand([repository] * 2, [common, [*common, rate]])
    assert codes == [2, 2], said
    (first,), (second,) = sentences(said)
    assert first == second
    assert "config.stages[0].optimizer is " in first and f"on process 1 ({socket.gethostname()})" in first
    assert "the code" not in first and not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_told_by_all(repository, tiny_config, tmp_path):
    codes, said = by_hand([repository] * 2, [[tiny_config, f"--workdir={tmp_path}/{each}"] for each in "ab"])
    assert codes == [2, 2], said
    (first,), (second,) = sentences(said)
    assert first == second and f"the workdir is '{tmp_path}/a' on process 0" in first
    assert f"and '{tmp_path}/b (not there)' on process 1" in first


@pytest.fixture
def two_tokenizers(tiny_config, tmp_path):
    """(arguments of a training whose paths are relative, two folders with the same corpus and other words each)"""
    flag, root = tiny_config.rsplit(":", 1)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        shutil.copytree(root, folder / "corpus")
        words = json.loads((folder / "corpus" / "tokenizer.json").read_text())
        vocabulary = words["model"]["vocab"]
        vocabulary[f"a word of {folder.name}"] = vocabulary.pop(max(vocabulary, key=vocabulary.get))
        (folder / "words.json").write_text(json.dumps(words))
    return [f"{flag}:corpus", f"--workdir={tmp_path}/run", "--config.stages[0].tokenizer=words.json"], folders


def test_other_data_is_told_by_all_before_a_step(repository, two_tokenizers, tmp_path):
    arguments, folders = two_tokenizers
    codes, said = by_hand([repository] * 2, [arguments] * 2, folders)
    assert codes == [2, 2], said
    (first,), (second,) = sentences(said)
    assert first == second and "the processes do not agree: data.tokenizer is '" in first
    assert "data.sources" not in first and not all_steps(tmp_path / "run" / "0_short")


def test_a_mistake_of_one_is_not_waited_out_by_the_other(repository, two_tokenizers):
    arguments, folders = two_tokenizers
    shutil.copy(folders[1] / "words.json", folders[1] / "corpus" / "tokenizer.json")  # which the corpus refuses
    began = time.monotonic()
    codes, said = by_hand([repository] * 2, [arguments] * 2, folders)
    assert codes == [75, 2], said
    assert time.monotonic() - began < 60, "less than the heartbeat"
    assert [len(each) for each in sentences(said)] == [0, 1]
    assert f"not waiting any longer: process 1 on {socket.gethostname()} leaves with exit code 2" in said[0]


def test_another_code_is_told_by_all(repository, tiny_config, tmp_path):
    other = tmp_path / "other"
    for folder in ("vidlang", "configs", "launch"):
        shutil.copytree(repository / folder, other / folder, ignore=shutil.ignore_patterns("__pycache__"))
    arguments = [tiny_config, f"--workdir={tmp_path}/run"]
    with (other / "vidlang" / "train" / "step.py").open("a") as step:
        step.write("# one more line\n")
    codes, said = by_hand([repository, other], [arguments] * 2)
    assert codes == [2, 2], said
    (first,), (second,) = sentences(said)
    assert first == second and "the processes do not agree: the code is '" in first
    assert "the packages" not in first
