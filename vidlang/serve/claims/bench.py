"""AVION's claims about throughput, by the repository's own benchmark of them, which is run as a program.

`benchmarks/chunk_length.py` loads clips of four frames from chunks of two lengths, in the ways that loaders go through
on their road from a plain one to ours. What a training gets end to end is a batch for each step and the wait before it:
`batch / (step + wait)` clips a second, with two processes that load and a step short enough never to hide them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vidlang.train.stages import write_json

ROOT = Path(__file__).resolve().parents[3]
MODULE = "benchmarks.chunk_length"
FOLDER = "benchmarks"
# Of the benchmark, so that a step takes a twentieth of a second and its batch longer to load.
BATCH, STEP = 16, 0.05
LONG_CHUNKS, SHORT_CHUNKS, MERGED = "long chunks", "short chunks", "short chunks, crop merged"


def throughput(workdir: Path, chunks: tuple[int, int], repeat: int) -> dict[str, float]:
    """Clips a second of each way, end to end; what was measured once is read again."""
    short, long = chunks
    path = workdir / FOLDER / f"chunk_length-{short}-{long}-{repeat}.json"
    if not path.is_file():
        _run(path, chunks)
    rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["ladder"]}
    names = {
        LONG_CHUNKS: f"{long} s, default, crop after",
        SHORT_CHUNKS: f"{short} s, default, crop after",
        MERGED: f"{short} s, default, fused",
    }
    return {way: end_to_end(rows[name]) for way, name in names.items()}


def end_to_end(row: dict[str, Any]) -> float:
    """Clips a second of a training whose steps wait this share of the time."""
    return BATCH * (1 - row["waits"]) / STEP


def _run(path: Path, chunks: tuple[int, int]) -> None:
    if not (ROOT / "benchmarks" / "chunk_length.py").is_file():
        raise ValueError(
            f"this claim runs {MODULE}, which is not beside vidlang in {ROOT}; run it from a checkout, or leave the "
            "claim out with --only"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    seconds = ",".join(map(str, chunks))
    options = [f"--chunk_s={seconds}", f"--batch={BATCH}", f"--step_s={STEP}", "--workers=2", f"--json={partial}"]
    done = subprocess.run([sys.executable, "-m", MODULE, *options], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{MODULE} ended with {done.returncode}: {done.stderr[-2000:]}")
    write_json(path, json.loads(partial.read_text(encoding="utf-8")))
    partial.unlink()
