"""Mutated files and records end as the right frames or as a named error, in bounded time and memory.

2,000 of them in all; the quick test takes a sample.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARES = {"decode": 1000, "store": 500, "cut": 500}


def run(kind, mutations, seed, repository, folder):
    # Opening many containers leaves holes in glibc's heap, which look like a leak; trimming closes them.
    environment = os.environ | {"PYTHONPATH": str(repository), "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, str(Path(__file__).with_name("_fuzz.py")), kind, str(mutations), str(seed), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["more_descriptors"] <= 0, report
    assert report["more_resident"] < 40e6, report
    return report["outcomes"]


@pytest.mark.parametrize("kind", SHARES)
def test_a_sample_of_mutations(kind, repository, tmp_path):
    outcomes = run(kind, 60, 1, repository, tmp_path)
    assert len(outcomes) > 2 and outcomes["damaged"], outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_two_thousand_mutations(kind, repository, tmp_path):
    outcomes = run(kind, SHARES[kind], 0, repository, tmp_path)
    # All sorts of endings occur, or the mutations would be too coarse or too fine.
    assert {"damaged", "truncated"} <= set(outcomes) and len(outcomes) > 3, outcomes
