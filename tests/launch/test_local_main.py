"""Several processes of one machine: what is started, what is told, and what happens when one of them dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from launch import local


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def supervised(script, *arguments, processes=2, **options):
    """(exit code) of processes that run a script; its only argument is a folder for what they leave behind."""
    own = SimpleNamespace(processes=processes, cpu_devices=1, restarts=0, grace=1.0, fewer=None)
    return local.supervise([sys.executable, "-c", script, *arguments], SimpleNamespace(**{**vars(own), **options}))


def test_arguments_of_the_training_pass_unread():
    given = ["--processes=2", "--config=a b.py", "--restart", "--config.x='q\"'", "--restarts=3", "--verbosity", "1"]
    own, rest = local.read_arguments(given)
    assert (own.processes, own.restarts) == (2, 3)
    assert rest == ["--config=a b.py", "--restart", "--config.x='q\"'", "--verbosity", "1"]


@pytest.mark.parametrize(
    "given",
    [[], ["--processes=x"], ["--processes=0"], ["--processes=2", "--cpu_devices=0"], ["--processes=2", "--fewer=3"]],
)
def test_a_mistake_is_one_sentence(repository, given):
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", *given], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_gpus_are_shared_in_blocks(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    found = local.environments(2, None)
    assert [own["VIDLANG_LOCAL_DEVICES"] for own in found] == ["0,1", "2,3"]
    assert [own["VIDLANG_PROCESS"] for own in found] == ["0", "1"]
    assert len({own["VIDLANG_COORDINATOR"] for own in found}) == 1
    with pytest.raises(ValueError, match="4 GPUs do not divide over 3 processes"):
        local.environments(3, None)


def test_without_a_gpu_it_says_how_to_try_it(no_gpu):
    with pytest.raises(ValueError, match="no NVIDIA GPU here; .*--cpu_devices=4"):
        local.environments(2, None)


def test_a_dry_run_prints_what_a_shell_would_run(tmp_path, capsys):
    # Any module stands for launch.train: the shell starts what was printed, and it says what it got.
    argument = """--config.x={'a': "b c"} $HOME `ls`"""
    assert local.main(["--processes=2", "--cpu_devices=3", "--dry_run", argument]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    code = "import os, sys; print(os.environ['VIDLANG_PROCESS'], os.environ['XLA_FLAGS'], sys.argv[1:])"
    for process, line in enumerate(lines):
        (tmp_path / "said.py").write_text(code)
        shown = line.replace("-m launch.train", str(tmp_path / "said.py"))
        done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{process} ") and done.stdout.endswith(f"device_count=3 {[argument]}\n")


def test_lines_begin_with_the_number_of_their_process(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    script = "import os, sys; n = os.environ['VIDLANG_PROCESS']; print('out', n); print('err', n, file=sys.stderr)"
    own = local.environments(2, 1)
    group = local.Group([sys.executable, "-c", script], own)
    assert sorted(group.wait(1.0)) == [(0, 0), (1, 0)]
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] out 0", "[1] out 1"]
    assert sorted(err.splitlines()) == ["[0] err 0", "[1] err 1"]


DIES = """
import os, pathlib, sys, time
folder, process = pathlib.Path(sys.argv[1]), os.environ["VIDLANG_PROCESS"]
tries = len(list(folder.glob(f"{process}.*")))
(folder / f"{process}.{tries}").write_text(os.environ["VIDLANG_COORDINATOR"])
if process == "1" and tries < 2:
    os.kill(os.getpid(), 9)
time.sleep(0 if tries == 2 else 60)
"""


def test_when_one_dies_all_are_started_again_on_a_new_port(tmp_path, capfd):
    began = time.monotonic()
    assert supervised(DIES, str(tmp_path), restarts=2) == 0
    assert time.monotonic() - began < 30, "the others were not waited for"
    ports = [(tmp_path / f"{process}.{each}").read_text() for each in range(3) for process in range(2)]
    assert len(ports) == 6 and ports[0] == ports[1] and len(set(ports)) == 3
    said = capfd.readouterr().err
    assert "process 1 was killed by SIGKILL; starting all again, 1 of 2" in said and "2 of 2" in said


def test_without_restarts_left_its_code_is_the_code(tmp_path, capfd):
    assert supervised(DIES, str(tmp_path), restarts=1) == 137
    assert "process 1 was killed by SIGKILL; not started again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ended", "want"),
    [
        ([(0, 75), (1, 137), (2, 134)], (1, 137)),  # seen in one look
        ([(2, 134), (0, 75)], (2, 134)),
        ([(0, 137), (1, 2)], (1, 2)),
        ([(0, 0), (1, 0)], (0, 0)),
    ],
)
def test_the_cause_is_told_and_not_what_follows_from_it(ended, want):
    assert local.verdict(ended) == want


def test_who_is_ended_by_the_launcher_is_no_cause(tmp_path, capfd):
    script = "import os, sys, time; n = os.environ['VIDLANG_PROCESS']; time.sleep(60) if n == '0' else sys.exit(75)"
    assert supervised(script) == 75
    assert "process 1 ended with exit code 75; not started again" in capfd.readouterr().err


# Process 1 dies as long as there are more than three; three are no number for its batch.
FITS_TWO = """
import os, pathlib, sys, time
count, process = int(os.environ["VIDLANG_PROCESSES"]), int(os.environ["VIDLANG_PROCESS"])
folder = pathlib.Path(sys.argv[1])
tries = len(list(folder.glob(f"{count}.{process}.*")))
(folder / f"{count}.{process}.{tries}").write_text(os.environ.get("VIDLANG_LOCAL_DEVICES", ""))
if count == 3:
    sys.exit(2)
if count > 3 and process == 1:
    os.kill(os.getpid(), 9)
time.sleep(60 if count > 3 else 0)
"""


def test_with_restarts_used_up_it_goes_on_with_the_next_number_that_fits(tmp_path, capfd):
    assert supervised(FITS_TWO, str(tmp_path), processes=4, restarts=1, fewer=2) == 0
    starts = sorted(path.name for path in tmp_path.iterdir() if path.name.split(".")[1] == "0")
    assert starts == ["2.0.0", "3.0.0", "4.0.0", "4.0.1"]
    said = capfd.readouterr().err
    assert "process 1 was killed by SIGKILL; starting all again, 1 of 1" in said
    assert "process 1 was killed by SIGKILL; going on with 3 of 4 processes" in said
    assert "ended with exit code 2; going on with 2 of 4 processes" in said


def test_below_the_fewest_it_ends(tmp_path, capfd):
    assert supervised(FITS_TWO, str(tmp_path), processes=4, fewer=3) == 2
    assert supervised(FITS_TWO, str(tmp_path), processes=4, fewer=4) == 137
    assert "process 1 was killed by SIGKILL; not started again" in capfd.readouterr().err


def test_the_gpus_of_the_dead_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    assert supervised(FITS_TWO, str(tmp_path), processes=4, cpu_devices=None, fewer=1) == 0
    gpus = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert [gpus[f"4.{process}.0"] for process in range(4)] == ["0,1", "2,3", "4,5", "6,7"]
    assert [gpus[f"3.{process}.0"] for process in range(3)] == ["0,1", "4,5", "6,7"]
    assert len({gpus["2.0.0"], gpus["2.1.0"]} & {"0,1", "4,5", "6,7"}) == 2


def test_a_mistake_is_never_tried_again_though_another_died_first(tmp_path):
    script = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], f"{os.environ['VIDLANG_PROCESS']}.{os.getpid()}").touch()
if os.environ["VIDLANG_PROCESS"] == "0":
    os.abort()
time.sleep(0.5)
sys.exit(2)
"""
    assert supervised(script, str(tmp_path), restarts=3, grace=5.0) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_workers_of_the_dead_are_ended(tmp_path):
    script = """
import os, pathlib, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1], str(worker.pid)).touch()
os.kill(os.getpid(), 9)
"""
    assert supervised(script, str(tmp_path)) == 137
    time.sleep(0.2)
    for worker in tmp_path.iterdir():
        state = f"/proc/{worker.name}/stat"
        assert not os.path.exists(state) or open(state).read().split()[2] == "Z"


def test_a_signal_is_passed_on_once_and_ends_all(tmp_path):
    script = """
import os, pathlib, signal, sys, time
folder, process = pathlib.Path(sys.argv[1]), os.environ["VIDLANG_PROCESS"]
def leave(signum, frame):
    with open(folder / f"{process}.got", "a") as got:
        got.write("x")
    time.sleep(0.3)
    os._exit(143)
signal.signal(signal.SIGTERM, leave)
(folder / f"{process}.ready").touch()
time.sleep(60)
"""

    def tell():
        while len(list(tmp_path.glob("*.ready"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=tell)
    thread.start()
    assert supervised(script, str(tmp_path), restarts=5) == 143
    thread.join()
    assert [path.read_text() for path in sorted(tmp_path.glob("*.got"))] == ["x", "x"]
    assert signal.getsignal(signal.SIGTERM) is before
