"""One signal asks, a second SIGINT does not ask."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from vidlang.train.signals import EvaluationLeft, Interrupted, StopRequest


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_old_handler_comes_back(signum):
    before = signal.getsignal(signum)
    with StopRequest() as stop:
        stop.leave_evaluation()
        assert stop.agreed() == 0
        os.kill(os.getpid(), signum)
        assert stop.agreed() == signum
        with pytest.raises(EvaluationLeft):
            stop.leave_evaluation()
    assert signal.getsignal(signum) is before


def test_where_nothing_is_half_done_a_signal_ends_the_run_at_once():
    with StopRequest() as stop, pytest.raises(Interrupted) as error, stop.at_once("the data"):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on after the signal")
    assert error.value.code == 143 and error.value.where == "the data"


def test_outside_the_main_thread_nothing_is_installed():
    def work():
        with StopRequest() as stop:
            seen.append((stop.agreed(), signal.getsignal(signal.SIGTERM)))

    seen, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def test_an_interruption_is_an_exit_with_the_code_that_shells_expect():
    with pytest.raises(SystemExit) as error:
        raise Interrupted(signal.SIGTERM, "step 3")
    assert error.value.code == 143


def test_a_second_interrupt_kills_at_once(repository):
    script = """
import os, signal, sys
from vidlang.train.signals import StopRequest
with StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True)
    assert done.stdout == "still here\n"
    assert done.returncode == -signal.SIGINT
