"""Flags of the precut launcher that do not go together, or cannot be meant, are refused in one sentence."""

import shutil

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.encode import EncodeSettings, encode_mp4

PLAIN = ("--input=in", "--output=out")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which is the home folder as well, with two videos in `in`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    frames = [np.full((16, 16, 3), 9 * k, np.uint8) for k in range(8)]
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        video = encode_mp4(frames, fps=4, settings=EncodeSettings(preset="ultrafast"))
        (tmp_path / "in" / f"{name}.mp4").write_bytes(video)
    return tmp_path


MISTAKES = {
    "--input and --check are different": ("--check=s", "--input=in"),
    "--input and --check and --adopt are": ("--check=", "--input=", "--adopt="),
    "--input and --adopt are different": ("--adopt=in", "--layout=index", *PLAIN),
    "--check needs the path of a store, and is empty": ("--check=",),
    "--adopt needs --layout=..., how the files lie in the folder: seconds,": ("--adopt=in", "--output=out"),
    "--split is for --adopt": ("--split=train", *PLAIN),
    "--cut_seconds is for --adopt": ("--cut_seconds=5", *PLAIN),
    "--cut_seconds must be": ("--adopt=in", "--layout=index", "--output=out", "--cut_seconds=nan"),
    "--workers must be 1 or more, got 0": ("--workers=0", *PLAIN),
    "--workers must be 1 or more, got -1": ("--workers=-1", "--check=s"),
    "--video_timeout must be a number of seconds above 0, got 0.0": ("--video_timeout=0", *PLAIN),
    "--video_timeout must be a number of seconds above 0, got nan": ("--video_timeout=nan", "--check=s"),
    "fps must be above 0 and at most 1000": ("--fps=1000000000", *PLAIN),
    "--fps must be a number such as": ("--fps=1e999999999", *PLAIN),
    "--fps must be a number such as 30 or 30000/1001, got 'nan'": ("--fps=nan", *PLAIN),
    "a chunk must last above 0 and at most 3600 s, got inf": ("--chunk_s=1e400", *PLAIN),
    "--input=VIDEOS --output=STORE": ("--output=out",),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_one_sentence(sentence, launch, folder):
    done = launch("launch.precut", *MISTAKES[sentence])
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert sentence in done.err and [entry.name for entry in folder.iterdir()] == ["in"]


def test_home_is_understood_in_every_path(launch, folder):
    tiny = ("--fps=4", "--chunk_s=1", "--short_side=16", "--workers=1", "--encoding=fast")
    done = launch("launch.precut", "--input=~/in/*.mp4", "--output=~/out", "--work=~/work", "--layout=index", *tiny)
    assert done.code == 0, done.err
    assert list(open_store(folder / "out").videos) == ["one", "two"] and not (folder / "~").exists()
    done = launch("launch.precut", "--check=~/out", "--workers=1")
    assert done.code == 0 and "nothing is wrong" in done.out, done.err
    for name in ("store.json", "index.arrow"):
        (folder / "out" / name).unlink()
    adopt = ("--adopt=~/out", "--layout=index", "--output=~/store", "--workers=1")
    done = launch("launch.precut", *adopt, "--cut_seconds=1")
    assert done.code == 0, done.err
    assert open_store(folder / "store").settings["chunk_seconds"] == 1
    shutil.rmtree(folder / "store")
    done = launch("launch.precut", *adopt, "--cut_seconds=2")
    assert done.code == 2 and "2 s was given" in done.err
    done = launch("launch.evaluate", "--workdir=~/nothing")
    assert str(folder / "nothing") in done.err


def test_a_file_name_that_is_no_text_is_printed(launch, folder):
    (folder / "in" / "b\udcfcd.mp4").write_bytes(b"1")
    done = launch("launch.precut", *PLAIN, "--fps=4", "--workers=1", "--encoding=fast")
    assert done.code.startswith("1 of the videos") and r"failed (unsupported): in/b\udcfcd.mp4: " in done.out, done.err
