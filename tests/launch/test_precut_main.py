"""The command line: a store and exit code 0, or one sentence and no traceback."""

import subprocess
import sys

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.encode import EncodeSettings, encode_mp4


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    frames = [np.full((48, 64, 3), 5 * number, np.uint8) for number in range(30)]
    for name in ("one", "two"):
        (folder / f"{name}.mp4").write_bytes(encode_mp4(frames, fps=10, settings=EncodeSettings(preset="ultrafast")))
    return folder


@pytest.fixture
def launch(repository):
    def run(*arguments):
        command = [sys.executable, "-m", "launch.precut", *arguments]
        result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert "Traceback" not in result.stderr
        return result

    return run


def test_makes_a_store(launch, videos, tmp_path):
    flags = ("--fps=5", "--short_side=32", "--chunk_s=2", "--workers=2")
    result = launch(f"--input={videos}", f"--output={tmp_path}/store", *flags)
    assert result.returncode == 0, result.stderr
    assert "[2/2]" in result.stdout and "2 videos in" in result.stdout
    store = open_store(tmp_path / "store")
    info = store.info("two")
    assert (info.fps, info.height, info.width, info.frames) == (5, 32, 42, 15)
    assert store.chunk_frames("two").tolist() == [10, 5]


def test_mistakes_end_with_one_sentence(launch, videos, tmp_path):
    result = launch(f"--input={tmp_path}/nowhere", f"--output={tmp_path}/store")
    assert result.returncode == 2
    assert result.stderr.strip() == f"error: there is no folder '{tmp_path}/nowhere'"
    result = launch(f"--input={videos}", f"--output={tmp_path}/store", "--fps=fast")
    assert result.returncode == 2 and "--fps must be a number such as 30 or 30000/1001, got 'fast'" in result.stderr


def test_broken_videos_are_listed_and_make_the_exit_code_one(launch, videos, tmp_path):
    (tmp_path / "in").mkdir()
    whole = (videos / "one.mp4").read_bytes()
    (tmp_path / "in" / "good.mp4").write_bytes(whole)
    (tmp_path / "in" / "half.mp4").write_bytes(whole[: len(whole) // 2])
    result = launch(f"--input={tmp_path}/in", f"--output={tmp_path}/store", "--fps=5")
    assert result.returncode == 1
    assert "1 of the videos could not be read" in result.stderr and "failed.jsonl" in result.stderr
    assert open_store(tmp_path / "store").videos == ["good"]
    assert "half" in (tmp_path / "store" / "failed.jsonl").read_text()
