"""Trains a recipe in several processes of this machine, and starts them again when one dies.

    python -m launch.local --processes=4 --config=configs/demo.py --workdir=runs/demo              # a GPU or more each
    python -m launch.local --processes=2 --cpu_devices=4 --config=configs/demo.py --workdir=runs/demo    # to try it

All other arguments go to launch.train. Lines of process 1 begin with "[1]". When a process dies, the others are ended
within --grace seconds; with --restarts=3 all are started again up to three times and go on from the last checkpoint.
With --fewer=2 the run then goes on with one process fewer, without the GPUs of the one that died, down to two at least;
a number that batch or mesh do not allow is passed over. Each number has its own --restarts.
SIGTERM and SIGINT are passed on: the run saves and leaves. --dry_run only prints what would run.

Exit codes are launch.train's: 0 done, 2 a mistake, which is never tried again, 128 + n stopped by signal n; else that
of the process that died first. One process drives all GPUs of a machine as well: that is launch.train by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO, Any, NoReturn

from launch import cli

MISTAKE = 2
# How processes end that lost another: they say so, or JAX aborts them.
FOLLOWS = (75, 128 + signal.SIGABRT)
# How long between two looks at the processes.
LOOK_SECONDS = 0.05


class Parser(argparse.ArgumentParser):
    """Tells mistakes as all launchers do."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


# Not absl's flags: those of launch.train, overrides of the config among them, pass through here unread.
def read_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(what is for this launcher, what is for launch.train)."""
    parser = Parser(prog="launch.local", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--processes", type=int, required=True, help="How many processes.")
    parser.add_argument("--cpu_devices", type=int, help="CPU devices of each process, pretended; default: real GPUs.")
    parser.add_argument("--restarts", type=int, default=0, help="How often all are started again when one dies.")
    parser.add_argument("--fewer", type=int, help="Go on with as few processes as this when --restarts are used up.")
    parser.add_argument("--grace", type=float, default=10.0, help="Seconds that the others have when one died.")
    parser.add_argument("--dry_run", action="store_true", help="Print the commands only.")
    own, rest = parser.parse_known_args(list(argv))
    if own.processes < 1 or own.restarts < 0 or own.grace < 0 or (own.cpu_devices is not None and own.cpu_devices < 1):
        raise ValueError("--processes and --cpu_devices are at least 1, --restarts and --grace at least 0")
    if own.fewer is not None and not 1 <= own.fewer <= own.processes:
        raise ValueError(f"--fewer is from 1 up to --processes={own.processes}; found {own.fewer}")
    return own, rest


def environments(
    processes: int, cpu_devices: int | None, gpus: Sequence[Sequence[int]] | None = None
) -> list[dict[str, str]]:
    """What each process has in its environment besides what is in this one's; `gpus` are those of each, if not all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for process in range(processes):
        own = {
            "VIDLANG_COORDINATOR": f"localhost:{port}",
            "VIDLANG_PROCESSES": str(processes),
            "VIDLANG_PROCESS": str(process),
        }
        if cpu_devices is not None:
            # Of two flags of one name the last counts.
            count = f"--xla_force_host_platform_device_count={cpu_devices}"
            own |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()}
        found.append(own)
    if cpu_devices is None:
        for own, numbers in zip(found, gpus or share(count_gpus(), processes), strict=True):
            own["VIDLANG_LOCAL_DEVICES"] = ",".join(map(str, numbers))
    return found


def share(gpus: int, processes: int) -> list[list[int]]:
    """The numbers of each process's GPUs."""
    if not gpus:
        raise ValueError(
            "there is no NVIDIA GPU here; try it on pretended devices with --cpu_devices=4, or start launch.train "
            "by itself, which drives all TPU chips of a machine"
        )
    if gpus % processes:
        raise ValueError(f"{gpus} GPUs do not divide over {processes} processes; choose another --processes")
    each = gpus // processes
    return [list(range(first, first + each)) for first in range(0, gpus, each)]


def count_gpus() -> int:
    """How many GPUs a process here sees."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip()])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


class Group:
    """The processes of one start."""

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]]) -> None:
        # Sessions of their own: a Ctrl-C in the terminal comes here, and from here once to each.
        options: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        self.processes: list[subprocess.Popen[str]] = []
        try:
            for own in environments:
                environment = {**os.environ, **own}
                started = subprocess.Popen(command, env=environment, **options, text=True, errors="replace")
                self.processes.append(started)
        except OSError:
            self.kill()
            raise
        self._readers = [
            threading.Thread(target=copy_lines, args=(f"[{number}] ", *streams), daemon=True)
            for number, process in enumerate(self.processes)
            for streams in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def send(self, signum: int) -> None:
        """A signal to every process that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)

    def wait(self, grace: float) -> list[tuple[int, int]]:
        """(process, exit code) of those that ended by themselves, in that order; the others are ended `grace` seconds
        after the first failure.

        They may be about to end with the same mistake; what they wait for, a dead process will never send.
        """
        ended: dict[int, int] = {}
        deadline = float("inf")
        while len(ended) < len(self.processes):
            for number, process in enumerate(self.processes):
                if number not in ended and (code := process.poll()) is not None:
                    ended[number] = 128 - code if code < 0 else code
                    if code:
                        deadline = min(deadline, time.monotonic() + grace)
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_SECONDS)
        self.kill()  # data workers of those that died would hold the lines open
        for process in self.processes:
            process.wait()
        for reader in self._readers:
            reader.join(timeout=1.0)
        return list(ended.items())

    def kill(self) -> None:
        """Ends all that still run, and data workers whose process is dead already."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def copy_lines(prefix: str, source: IO[str], target: IO[str]) -> None:
    """Prints each line of a process as soon as it comes."""
    for line in source:
        target.write(prefix + line.rstrip("\n") + "\n")
        target.flush()


def verdict(ended: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(process, exit code) of the end that explains the others.

    That is a mistake, else the first failure; one that only follows from another's end comes after all others, because
    between two looks both may have ended.
    """
    failed = [end for end in ended if end[1]]
    mistakes = [end for end in failed if end[1] == MISTAKE]
    causes = [end for end in failed if end[1] not in FOLLOWS]
    return (mistakes or causes or failed or [(0, 0)])[0]


@contextlib.contextmanager
def passed_on(group: list[Group], asked: list[int]) -> Iterator[None]:
    """SIGTERM and SIGINT go to the processes of the newest group, and are remembered in `asked`."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        group[-1].send(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Sizes:
    """How many processes the next start has: all again while --restarts last, then one fewer, down to --fewer."""

    def __init__(self, own: argparse.Namespace) -> None:
        self._own, self.processes, self._used = own, own.processes, 0
        self._gpus = None if own.cpu_devices is not None else share(count_gpus(), own.processes)

    def environments(self) -> list[dict[str, str]]:
        """Those of the next start."""
        return environments(self.processes, self._own.cpu_devices, self._gpus)

    def after(self, process: int, code: int) -> str:
        """What comes after this process ended so, in words; empty when nothing does."""
        # Fewer processes may be a number that batch or mesh do not allow, of which the first number was none.
        unfit = code == MISTAKE and self.processes < self._own.processes and not self._used
        if code == MISTAKE and not unfit:
            return ""
        if self._used < self._own.restarts and not unfit:
            self._used += 1
            return f"starting all again, {self._used} of {self._own.restarts}"
        if self._own.fewer is None or self.processes <= self._own.fewer:
            return ""
        self.processes, self._used = self.processes - 1, 0
        if self._gpus is not None:
            # Where this number was no good, the GPUs of any process are as good as the others'.
            self._gpus = [numbers for number, numbers in enumerate(self._gpus) if number != process]
        return f"going on with {self.processes} of {self._own.processes} processes"


def supervise(command: Sequence[str], own: argparse.Namespace) -> int:
    """Runs all processes to their end, starts them again where that helps, and returns the exit code."""
    asked: list[int] = []
    sizes = Sizes(own)
    groups: list[Group] = [Group(command, sizes.environments())]
    with passed_on(groups, asked):
        while True:
            process, code = verdict(groups[-1].wait(own.grace))
            if code in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT) or asked:
                return code
            again = sizes.after(process, code)
            name = f"was killed by {signal.Signals(code - 128).name}" if code > 128 else f"ended with exit code {code}"
            if again or code != MISTAKE:
                print(f"process {process} {name}; {again or 'not started again'}", file=sys.stderr, flush=True)
            if not again:
                return code
            groups.append(Group(command, sizes.environments()))
            if asked:  # while they were being started
                groups[-1].send(asked[-1])


def main(argv: Sequence[str]) -> int:
    """Starts the processes, or prints how."""
    own, rest = read_arguments(argv)
    command = [sys.executable, "-m", "launch.train", *rest]
    if own.dry_run:
        for environment in environments(own.processes, own.cpu_devices):
            words = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
            print(" ".join([*words, shlex.join(command)]))
        return 0
    return supervise(command, own)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except cli.USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
