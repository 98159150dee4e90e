"""A helper process ends with the process that started it, even when that one is killed."""

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from vidlang.data.workers import processes
from vidlang.data.workers.processes import Lost, Sign, run_jobs

SCRIPT = """
import os, time
from vidlang.data.workers.processes import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*pool.map(abs, [1, 2]), *pool._processes, flush=True)
        pool.submit(time.sleep, 600).result()
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_helpers_end_with_a_killed_parent(repository, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    one, two, *helpers = map(int, process.stdout.readline().split())
    assert (one, two, len(helpers)) == (1, 2, 2) and all(map(alive, helpers))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(alive, helpers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [helper for helper in helpers if alive(helper)]
    for helper in left:
        os.kill(helper, signal.SIGKILL)
    assert not left


MAIN = """
import sys
from vidlang.data.workers.processes import run_jobs

print("imported", flush=True)

def own(job, sign):
    return job + 1

if __name__ == "__main__":
    if sys.argv[1] == "elsewhere":
        from helping import elsewhere as function
    else:
        function = own
    assert list(run_jobs(function, [1], workers=1)) == [(1, 2)]
    assert sys.modules["__main__"].__file__ == __file__
"""


@pytest.mark.parametrize(("where", "times"), [("elsewhere", 1), ("main", 2)])
def test_helpers_import_the_main_module_only_for_what_is_from_it(repository, tmp_path, where, times):
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "helping.py").write_text("def elsewhere(job, sign):\n    return job + 1\n")
    environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{tmp_path}"}
    command = [sys.executable, str(tmp_path / "main.py"), where]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == (
        "imported\n" * times
    )


CODE = """
import os, signal, time
from pathlib import Path

LOG = Path(__file__).with_name("log")

def note(text):
    with open(LOG, "a") as file:
        file.write(text + "\\n")

def work(job, sign):
    died = LOG.read_text().count(f"+{job}\\n") if LOG.exists() else 0
    note(f"+{job}")
    for _ in range(4):
        time.sleep(0.05)
        sign(job)
    if job.startswith("dies") and not died:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hangs":
        time.sleep(600)
    if job == "raises":
        raise KeyError("a mistake")
    if job == "disk":
        raise OSError(28, "No space left on device")
    note(f"-{job}")
    return job.upper()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function that helpers can import, which notes when it begins and ends."""
    (tmp_path / "noting_work.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import noting_work

    yield noting_work.work
    del sys.modules["noting_work"]


def most_at_once(lines):
    running, most = 0, 0
    for line in lines:
        running += 1 if line.startswith("+") else -1
        most = max(most, running)
    return most


def test_every_job_is_answered_and_one_that_dies_is_tried_again_alone(work, tmp_path):
    jobs = ["a", "dies", "b", "c", "d", "dies too"]
    news = list(run_jobs(work, jobs, workers=2, silence=30))
    assert sorted(answer for _, answer in news if isinstance(answer, str)) == sorted(job.upper() for job in jobs)
    assert sum(isinstance(answer, Sign) for _, answer in news) == 4 * (len(jobs) + 2)
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    for job in ("dies", "dies too"):
        first = lines.index(f"+{job}")
        second = lines.index(f"+{job}", first + 1)
        assert lines[second + 1] == f"-{job}", "another job ran beside the second try"
        del lines[first]
    assert lines.count("+a") == 1 and most_at_once(lines) <= 2


def test_without_room_jobs_wait_for_each_other(work, tmp_path):
    assert len([a for _, a in run_jobs(work, list("abcd"), workers=3, room=lambda: False) if isinstance(a, str)]) == 4
    assert most_at_once((tmp_path / "log").read_text().split("\n")[:-1]) == 1


def test_silence_ends_a_job_and_errors_end_the_run(work):
    news = [each for each in run_jobs(work, ["hangs", "a"], workers=1, silence=1) if not isinstance(each[1], Sign)]
    assert news == [("hangs", Lost("timeout", "nothing came of it for 1 s")), ("a", "A")]
    with pytest.raises(RuntimeError, match="KeyError: 'a mistake'"):
        list(run_jobs(work, ["a", "raises"], workers=2))
    with pytest.raises(OSError, match="No space left on device"):
        list(run_jobs(work, ["disk"], workers=1))


STARTS = """
import os, signal, time
from pathlib import Path

HERE = Path(__file__)
if HERE.with_name("parent").read_text() != str(os.getpid()):
    starts = HERE.with_name("starts")
    with open(starts, "a") as file:
        file.write("x")
    if starts.stat().st_size <= int(HERE.with_name("bad").read_text()):
        if HERE.with_name("how").read_text() == "hangs":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)

def work(job, sign):
    return job.upper()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_helper_that_does_not_begin_costs_its_job_nothing(how, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "START_SECONDS", 4.0)
    for name, text in (("bad", "1"), ("how", how), ("parent", str(os.getpid())), (f"starting_{how}.py", STARTS)):
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module(f"starting_{how}").work
    assert list(run_jobs(work, ["a", "b"], workers=1)) == [("a", "A"), ("b", "B")]
    if how == "hangs":
        return  # the rest would take long
    (tmp_path / "bad").write_text("99")
    with pytest.raises(RuntimeError, match="before any began; its own message is above"):
        list(run_jobs(work, ["a", "b"], workers=1))
