"""The command line: a store and exit code 0, or one sentence and no traceback; and a run that is killed goes on."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.encode import ENCODINGS, EncodeSettings, encode_mp4


def video(path, frames=30, size=(48, 64)):
    pictures = [np.full((*size, 3), 5 * number % 256, np.uint8) for number in range(frames)]
    path.write_bytes(encode_mp4(pictures, fps=10, settings=EncodeSettings(preset="ultrafast")))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in ("one", "two"):
        video(folder / f"{name}.mp4")
    return folder


@pytest.fixture
def start(repository):
    """Runs the launcher in a process of its own, which may have helpers."""

    def run(*arguments):
        command = [sys.executable, "-m", "launch.precut", *arguments]
        result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert "Traceback" not in result.stderr
        return result

    return run


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_makes_a_store_that_checks_until_it_is_damaged(start, videos, tmp_path):
    flags = ("--fps=5", "--short_side=32", "--chunk_s=2", "--workers=2", "--encoding=fast")
    result = start(f"--input={videos}", f"--output={tmp_path}/store", *flags)
    assert result.returncode == 0, result.stderr
    assert "[2/2] videos, 0 failed" in result.stdout and "2 videos in" in result.stdout
    store = open_store(tmp_path / "store")
    info = store.info("two")
    assert (info.fps, info.height, info.width, info.frames) == (5, 32, 42, 15)
    assert store.chunk_frames("two").tolist() == [10, 5]
    assert store.settings["encode"] == dataclasses.asdict(ENCODINGS["fast"])
    result = start(f"--check={tmp_path}/store", "--workers=1")
    assert result.returncode == 0 and "nothing is wrong" in result.stdout, result.stderr
    (shard,) = (tmp_path / "store").glob("*array_record*")
    damaged = bytearray(shard.read_bytes())
    damaged[600:620] = bytes(20)
    shard.write_bytes(damaged)
    result = start(f"--check={tmp_path}/store", "--workers=1")
    assert result.returncode == 1 and "wrong with" in result.stderr and "'one'" in result.stdout


def test_mistakes_end_with_one_sentence(launch, videos, tmp_path):
    end = launch("launch.precut", f"--input={tmp_path}/nowhere", f"--output={tmp_path}/store")
    assert end.code == 2 and end.err.startswith(f"error: there is no folder '{tmp_path}/nowhere'")
    end = launch("launch.precut", f"--input={videos}", f"--output={tmp_path}/store", "--fps=fast")
    assert end.code == 2 and "--fps must be a number such as 30 or 30000/1001, got 'fast'" in end.err
    end = launch("launch.precut", f"--input={videos}")
    assert end.code == 2 and "--input=VIDEOS --output=STORE" in end.err


def test_broken_videos_are_listed_and_make_the_exit_code_one(start, videos, tmp_path):
    (tmp_path / "in").mkdir()
    whole = (videos / "one.mp4").read_bytes()
    (tmp_path / "in" / "good.mp4").write_bytes(whole)
    (tmp_path / "in" / "half.mp4").write_bytes(whole[: len(whole) // 2])
    result = start(f"--input={tmp_path}/in", f"--output={tmp_path}/store", "--fps=5")
    assert result.returncode == 1
    assert "1 of the videos could not be read" in result.stderr and "failed.jsonl" in result.stderr
    assert f"failed (truncated): {tmp_path}/in/half.mp4: the video is truncated" in result.stdout
    assert list(open_store(tmp_path / "store").videos) == ["good"]
    failure = json.loads((tmp_path / "store" / "failed.jsonl").read_text())
    assert (failure["name"], failure["kind"]) == ("half", "truncated")


def test_a_folder_of_chunks_is_adopted(start, videos, tmp_path):
    result = start(f"--input={videos}", f"--output={tmp_path}/files", "--layout=index", "--fps=5", "--chunk_s=2")
    assert result.returncode == 0, result.stderr
    for name in ("store.json", "index.arrow"):
        (tmp_path / "files" / name).unlink()
    result = start(f"--adopt={tmp_path}/files", "--layout=index", f"--output={tmp_path}/store", "--workers=1")
    assert result.returncode == 0, result.stderr
    assert "2 videos in" in result.stdout
    assert open_store(tmp_path / "store").chunk_frames("two").tolist() == [10, 5]


@pytest.mark.slow
def test_killed_at_eight_random_moments_it_makes_the_same_store(repository, tmp_path):
    """The whole group of processes dies at once, as when a machine's memory is short or a job is ended."""
    (tmp_path / "in").mkdir()
    for number in range(9):
        video(tmp_path / "in" / f"{number}.mp4", 20 + 12 * number, (64, 96))
    (tmp_path / "in" / "x.mp4").write_bytes((tmp_path / "in" / "3.mp4").read_bytes()[:900])
    program = "import runpy; from vidlang.data.stores import record_writer; record_writer.CHUNKS_PER_SHARD = 14; "
    program += "runpy.run_module('launch.precut', run_name='__main__')"
    flags = [f"--input={tmp_path}/in", "--fps=10", "--chunk_s=1", "--workers=2"]

    def begin(name):
        command = [sys.executable, "-c", program, *flags, f"--output={tmp_path}/{name}"]
        silent = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=repository, stdout=silent, stderr=silent, start_new_session=True)

    began = time.monotonic()
    assert begin("whole").wait() == 1
    length = time.monotonic() - began
    expected, rng, kills = content(tmp_path / "whole"), np.random.default_rng(0), 0
    assert len(json.loads(expected["store.json"])["shards"]) > 3
    while kills < 8:
        process = begin("store")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 1.0) * length)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode in (1, 2)  # 2 where it was killed when the store was there
            assert content(tmp_path / "store") == expected
            shutil.rmtree(tmp_path / "store")
    if not (tmp_path / "store").exists():
        assert begin("store").wait() == 1
    assert content(tmp_path / "store") == expected
