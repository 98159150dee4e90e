"""A training of several processes under their launcher, which tests disturb from outside."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.train.chaos_config import PROCESSES
from vidlang.core.metrics import read_history

# Only what hangs takes so long.
PATIENCE = 300


class Training:
    """Started again and again; `log` is all that it ever said."""

    def __init__(self, repository, corpus, workdir):
        self.workdir, self.stage, self.log = workdir, workdir / "0_short", []
        self._repository, self._starts = repository, 0
        self._command = [sys.executable, "-m", "launch.local", f"--processes={PROCESSES}", "--restarts=99"]
        self._command += ["--grace=5", "--cpu_devices=1", f"--config=tests/train/chaos_config.py:{corpus}"]
        self._command += [f"--workdir={workdir}"]

    def start(self, kilobytes=None):
        """With a limit in kilobytes, no file becomes larger: to whoever writes, that is a full disk."""
        limited = ["bash", "-c", f'ulimit -S -f {kilobytes}; exec "$@"', "bash"] if kilobytes else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [*limited, *self._command]
        self._since = len(self.log)
        self.launcher = subprocess.Popen(command, cwd=self._repository, start_new_session=True, **pipes)
        self._reader = threading.Thread(target=lambda: self.log.extend(self.launcher.stdout), daemon=True)
        self._reader.start()

    def step(self):
        with contextlib.suppress(ValueError):  # it is just being written anew
            return max((record["step"] for record in read_history(self.stage / "metrics.jsonl")), default=-1)
        return -1

    def runs(self):
        """Whether all processes are there and train, since whichever start was the last."""
        said = "".join(self.log[self._since :])
        last = said.rfind("starting all again")
        return said.rfind("compiled the step in") > last and len(self.processes()) == PROCESSES

    def has_said(self, words, since=0):
        return re.search(words, "".join(self.log[since:]), re.MULTILINE) is not None

    def wait_for(self, met, what):
        """Until the condition is met."""
        deadline = time.monotonic() + PATIENCE
        while not met():
            over = self.launcher.poll() is not None
            if over:
                self._reader.join(timeout=PATIENCE)
            assert not over or met(), f"ended with {self.launcher.returncode}, and did not {what}\n{self._tail()}"
            assert time.monotonic() < deadline, f"did not {what}\n{self._tail()}"
            time.sleep(0.02)

    def end(self, code):
        """Waits for the launcher, which leaves with this exit code."""
        try:
            self.launcher.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end\n{self._tail()}") from None
        self._reader.join(timeout=PATIENCE)
        assert self.launcher.returncode == code, self._tail()

    def processes(self):
        """The pid of each process of the training, by its number."""
        found = {}
        for pid in self.children(self.launcher.pid, "launch.train"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                numbers = [each for each in variables if each.startswith(b"VIDLANG_PROCESS=")]
                found |= {int(each.split(b"=")[1]): pid for each in numbers}
        return found

    @staticmethod
    def children(parent, word):
        """Children that have this word in their command line."""
        found = []
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pids = map(int, tasks.read_text().split())
                found += [pid for pid in pids if word in Path(f"/proc/{pid}/cmdline").read_text()]
        return found

    def kill_all(self):
        """As when the power fails."""
        self.stop()
        self.end(-signal.SIGKILL)

    def stop(self):
        """Ends whatever still runs."""
        if self.launcher.poll() is not None:
            return
        pids = self.processes().values()
        self.launcher.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _tail(self):
        return "".join(self.log[-80:])
