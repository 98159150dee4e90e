"""Extracting from the command line: the store of docs/features.md, whole even after being killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vidlang.data.features.store import FeatureStore

SMALL = ("--segments=2", "--frames=2", "--batch_size=4", "--shard_rows=4", "--variant=half", "--dials={'mask': 0.5}")


# The model of the run is a test's own, which the config makes known.
START = "import runpy as r; r.run_path('tests/launch/tiny_config.py'); r.run_module('launch.extract', {}, '__main__')"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def trained(launch, tiny_config, workdir):
    if not (workdir / "config.json").exists():
        shorter = ("--config.stages[0].duration=6 steps", "--config.stages[0].evals=()")
        assert launch("launch.train", tiny_config, f"--workdir={workdir}", *shorter).code == 0
    return workdir


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_extracting_from_the_command_line(launch, trained, tmp_path):
    out = tmp_path / "features"
    arguments = ("launch.extract", f"--run={trained}", f"--out={out}", *SMALL)
    done = launch(*arguments)
    assert done.code == 0 and done.out == f"{out}: 16 clips encoded\n"
    store = FeatureStore(out)
    assert store.variants == ("half",) and store.read(15, "half").shape == (2, 8) and not store.missing("half")
    assert np.load(out / "half/00000.npy").dtype == np.float16
    assert launch(*arguments).out == f"{out}: all that this part has to make is there\n"
    windows = ("--layout=windows", "--window=4 frames", "--name_column=start", "--frames=2")
    seen = launch("launch.extract", f"--run={trained}", f"--out={tmp_path / 'nlq'}", *windows)
    assert seen.code == 2 and "the name of two clips at different seconds" in seen.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--part=4/4",), "part 4 of 4 does not exist"),
        (("--part=4",), "--part must be i/n, as in --part=0/4; found '4'"),
        (("--width=d-768,d-384", "--variant=a"), "--variant names one variant, and --width gives 2"),
        (("--layout=windows",), "--layout=windows needs --window, as in --window='16 frames'"),
        (("--window=1 s",), "--window and --stride are for --layout=windows"),
        (("--clip={'size'}",), "--clip must be a section as Python writes it"),
        (("--dials={'mask': 2}",), "the dial mask is 2"),
        (("--data={'name': 'synthetik'}",), "synthetik"),
        (("--clip={'times': {'name': 'segments'}}",), "choose 'middle' for evaluation"),
        (("--variant=a/b",), "a variant's name is a folder's name"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_store(launch, trained, tmp_path, arguments, words):
    done = launch("launch.extract", f"--run={trained}", f"--out={tmp_path / 'features'}", *arguments)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(launch, trained, tmp_path, repository):
    command = [sys.executable, "-c", START]
    whole, out = tmp_path / "whole", tmp_path / "features"
    assert launch("launch.extract", f"--run={trained}", f"--out={whole}", *SMALL).code == 0
    wanted, kills = content(whole), 0
    for files in (1, 3, 4, 6):
        arguments = [*command, f"--run={trained}", f"--out={out}", *SMALL]
        process = subprocess.Popen(arguments, cwd=repository, env=os.environ, start_new_session=True)
        while process.poll() is None and (not out.exists() or len(list(out.rglob("*.*"))) < files):
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(timeout=120)
        assert all(wanted[name] == kept for name, kept in content(out).items() if not name.endswith(".partial"))
    assert kills
    assert launch("launch.extract", f"--run={trained}", f"--out={out}", *SMALL).code == 0
    assert {name: kept for name, kept in content(out).items() if not name.endswith(".partial")} == wanted
