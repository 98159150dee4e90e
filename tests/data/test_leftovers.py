"""What a program left that was killed with all its processes goes with the next stream; what is in use stays."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.workers import leftovers
from vidlang.data.workers.blocks import shared_folder
from vidlang.data.workers.leftovers import Claim, sweep

# A table without a path is written to a temporary file for the workers.
PROGRAM = """
import sys, time
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import ClipSpec, train_stream
table = ClipTable.open(sys.argv[1])
table.path = None
spec = ClipSpec(3, 16, dict(name="middle"), dict(name="center"))
batches = train_stream(table, None, spec, seed=0, batch_size=2, workers=1)
next(batches)
print("made", flush=True)
time.sleep(600)
"""
SPEC = ClipSpec(3, 16, {"name": "middle"}, {"name": "center"})


@pytest.fixture
def left(tiny_table, tmp_path, monkeypatch):
    """Returns what there is of a program with a stream and a worker, and of one that has been killed as a group."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = set(Path(shared_folder()).glob("vidlang-*"))

    def run():
        command = [sys.executable, "-c", PROGRAM, tiny_table.path]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        program = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        assert program.stdout.readline() == b"made\n"
        return program

    def files(program):
        found = {*Path(shared_folder()).glob(f"vidlang-{program.pid}-*"), *tmp_path.glob("vidlang-*")} - others
        # A batch that was made gives its block back.
        return {Path(str(path).removesuffix("-free")) for path in found}

    program = run()
    yield program, files
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    sweep(Path(shared_folder()))


def test_the_next_stream_removes_what_a_killed_group_left_and_only_then(left, tiny_table, caplog):
    program, files = left
    in_use = files(program)
    assert {path.parent for path in in_use} == {Path(shared_folder()), Path(tempfile.gettempdir())}
    with train_stream(tiny_table, None, SPEC, seed=0, batch_size=2, workers=1) as batches:
        next(batches)
    sweep(Path(tempfile.gettempdir()))
    assert files(program) >= in_use, "these belong to a program that lives"

    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    assert files(program)
    caplog.set_level("INFO", logger="absl")
    with train_stream(tiny_table, None, SPEC, seed=0, batch_size=2, workers=1) as batches:
        next(batches)
    assert "that killed programs had left there" in caplog.text
    sweep(Path(tempfile.gettempdir()))
    assert not files(program)


def test_a_claim_is_seen_by_others_until_it_is_released(tmp_path):
    first = Claim(str(tmp_path / "vidlang-1"))
    (tmp_path / "vidlang-1-block").write_bytes(b"12")
    second = Claim(str(tmp_path / "vidlang-2"))
    assert (tmp_path / "vidlang-1-block").exists()
    first.release()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"vidlang-1-block", "vidlang-2-lock"}
    second.release()


def test_a_file_that_a_sweep_removed_meanwhile_is_claimed_anew(tmp_path, monkeypatch):
    """Between the making of the file and its lock, others may have taken it for a dead program's."""
    lock = leftovers.fcntl.flock
    removed = []

    def removing(handle, how):
        if not removed:
            removed.append((tmp_path / "vidlang-1-lock").unlink())
        lock(handle, how)

    monkeypatch.setattr(leftovers.fcntl, "flock", removing)
    claim = Claim(str(tmp_path / "vidlang-1"))
    assert removed and (tmp_path / "vidlang-1-lock").exists()
    sweep(tmp_path)
    assert (tmp_path / "vidlang-1-lock").exists()
    claim.release()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def refusing(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(leftovers.fcntl, "flock", refusing)
    Claim(str(tmp_path / "vidlang-1")).release()
    assert "No locks available" in caplog.text and not list(tmp_path.iterdir())
