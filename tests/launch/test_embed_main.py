"""Embedding a table from the command line: Parquet files, whole even after being killed, and by several processes."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serve.tiny_run import tiny_run

SMALL = ("--batch_size=4", "--shard_rows=2", "--what=videos,texts")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))[0]


@pytest.fixture
def arguments(run, tiny_config):
    """Model and clips."""
    path, root = tiny_config.removeprefix("--config=").rsplit(":", 1)
    data = runpy.run_path(path)["get_config"](root).stages[0].data.to_dict()
    return f"--run={run}", f"--data={data}"


def content(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: kept for name, kept in found.items() if not name.endswith(".partial")}


@pytest.mark.slow
def test_embedding_from_the_command_line(launch, arguments, tmp_path):
    out = tmp_path / "out"
    done = launch("launch.embed", *arguments, f"--out={out}", *SMALL, "--part=0/2")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{out}: 8 clips, ") and "clips/s\nvideos: 4 of 8 files\ntexts: 4 of 8 files" in done.out
    lacks = launch("launch.embed", f"--out={out}", "--check")
    assert lacks.code == 2 and "videos: 4 of 8 files, 8 clips; missing are 00001, 00003, 00005, 00007" in lacks.err
    assert launch("launch.embed", *arguments, f"--out={out}", *SMALL, "--part=1/2").code == 0
    again = launch("launch.embed", *arguments, f"--out={out}", *SMALL)
    assert again.out.startswith(f"{out}: all that this part has to make is there\n")
    said = launch("launch.embed", f"--out={out}", "--check").out
    assert said.startswith("videos: 8 of 8 files, 16 clips\ntexts: 8 of 8 files, ") and said.endswith("\ncomplete\n")
    table = pa.concat_tables([pq.read_table(path) for path in sorted((out / "videos").glob("*.parquet"))])
    assert table["row"].to_pylist() == list(range(16))
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--part=4/4",), "part 4 of 4 does not exist"),
        (("--what=videos,sounds",), "what is 'videos, sounds'; it is videos, texts or both"),
        (("--columns=narration",), "the table has no column 'narration'"),
        (("--clip={'size'}",), "--clip must be a section as Python writes it"),
        (("--dials={'mask': 2}",), "the dial mask is 2"),
        (("--data={'name': 'synthetik'}",), "synthetik"),
        (("--check",), "holds no embeddings: it has no embeddings.json"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(launch, arguments, tmp_path, given, words):
    done = launch("launch.embed", *arguments, f"--out={tmp_path / 'out'}", *given)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert "give --run with the model and --data" in launch("launch.embed", f"--out={tmp_path}").err


@pytest.fixture
def start(repository, arguments):
    """Starts the command in a process of its own, or as one of several."""

    def started(out, *more, devices=8, **environment):
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        return subprocess.Popen(
            [sys.executable, "-m", "launch.embed", *arguments, f"--out={out}", *SMALL, *more],
            cwd=repository,
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(repository), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return started


def files_in(folder):
    return len(list(Path(folder).rglob("*.parquet")))


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(launch, arguments, start, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert launch("launch.embed", *arguments, f"--out={whole}", *SMALL).code == 0
    process, deadline = start(out), time.monotonic() + 120
    while process.poll() is None and files_in(out) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert 3 <= files_in(out) < 16, "killed in the middle"
    wanted = content(whole)
    assert all(wanted[name] == kept for name, kept in content(out).items())
    assert launch("launch.embed", *arguments, f"--out={out}", *SMALL).code == 0
    assert content(out) == wanted


@pytest.mark.slow
def test_two_processes_share_each_batch_and_write_what_one_does(launch, arguments, start, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert launch("launch.embed", *arguments, f"--out={whole}", *SMALL).code == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"VIDLANG_COORDINATOR": f"localhost:{free.getsockname()[1]}", "VIDLANG_PROCESSES": "2"}
    processes = [start(out, devices=4, **place, VIDLANG_PROCESS=str(rank)) for rank in range(2)]
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "16 clips" in said[0][0] and "videos: 8 of 8 files" in said[0][0] and "clips" not in said[1][0]
    assert content(out) == content(whole)
