"""What the loader adds to decoding: clips a second with Grain's workers against the same clips in a plain loop.

    python -m benchmarks.pipeline                                   # makes a small corpus of its own first
    python -m benchmarks.pipeline --table=clips.arrow --workers=0,8,16 --json=pipeline.json
    python -m benchmarks.pipeline --memory_clips=20000 --workers=2  # resident memory over many clips

    plain       one process decodes the very clips of the same steps, one after another, with nothing around it
    plain x W   W such processes at once: what this machine's cores can give when they share caches and clocks
    W workers   the loader, read by a consumer that does nothing else

`share` is the loader's rate over W times that of `plain`, `of cores` over that of `plain x W`. The sides take turns;
medians. Memory is the proportional set size of the process and all its workers, so that shared pages count once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks._common import footage, machine
from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.encode import ENCODINGS, encode_mp4
from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.plan import TrainPlanner
from vidlang.data.precut import PrecutSettings, precut
from vidlang.data.tokenizer import Tokenizer, train_wordlevel
from vidlang.data.workers.processes import end_with_parent

TABLE = flags.DEFINE_string("table", None, "A saved clip table with its store; by default a small one is made.")
WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to try.")
ENCODING = flags.DEFINE_enum("encoding", "balanced", list(ENCODINGS), "How the corpus made here is encoded.")
FRAMES = flags.DEFINE_integer("frames", 4, "Frames of a clip.")
SIZE = flags.DEFINE_integer("size", 224, "Height and width of a clip.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Clips in a batch.")
STEPS = flags.DEFINE_integer("steps", 16, "Batches to time in each turn.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of all sides.")
MEMORY = flags.DEFINE_integer("memory_clips", 0, "Measure memory over so many clips instead of speed.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

SEED, LENGTH = 0, 16


def main(argv: list[str]) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        table = ClipTable.open(TABLE.value) if TABLE.value else make_table(Path(folder))
        words = Path(folder) / "tokenizer.json"
        train_wordlevel((text for i in range(min(len(table), 1000)) for text in table.cell(i, "texts")), words)
        parts = table, Tokenizer(words, LENGTH), spec()
        print(f"{len(table)} clips, {FRAMES.value} frames of {SIZE.value} x {SIZE.value}, batches of {BATCH.value}")
        results = memory(*parts) if MEMORY.value else speed(*parts)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")


def spec() -> ClipSpec:
    """A short training clip."""
    rules: dict[str, Any] = {"times": {"name": "segments"}, "crop": {"name": "random_resized"}}
    return ClipSpec(frames=FRAMES.value, size=SIZE.value, text_length=LENGTH, **rules)


def speed(table: ClipTable, tokenizer: Tokenizer, clip: ClipSpec) -> dict[str, Any]:
    """Clips a second of every side, medians over the turns."""
    counts = [int(count) for count in WORKERS.value]
    rates: dict[str, list[float]] = {}
    for turn in range(TURNS.value):
        rates.setdefault("plain", []).append(plain_loops(table, tokenizer, clip, 1, turn))
        for workers in counts:
            if workers > 1:
                plain = plain_loops(table, tokenizer, clip, workers, turn)
                rates.setdefault(f"plain x {workers}", []).append(plain)
            rates.setdefault(f"{workers} workers", []).append(loader(table, tokenizer, clip, workers))
    medians = {side: float(np.median(values)) for side, values in rates.items()}
    print(f"\n{'':>12} {'clips/s':>8} {'share':>7} {'of cores':>9}")
    for side, rate in medians.items():
        workers = max(1, int(side.split()[0])) if side.endswith("workers") else 0
        cores = medians.get(f"plain x {workers}", medians["plain"])
        ratios = f"{rate / (workers * medians['plain']):7.2f} {rate / cores:9.2f}" if workers else ""
        print(f"{side:>12} {rate:8.1f} {ratios}")
    return {"clips_per_second": medians}


def loader(table: ClipTable, tokenizer: Tokenizer, clip: ClipSpec, workers: int) -> float:
    """Clips a second of the stream once it runs."""
    with train_stream(table, tokenizer, clip, seed=SEED, batch_size=BATCH.value, workers=workers) as batches:
        # What was made while the others were being started does not count.
        for _ in range(2 + 4 * workers):
            next(batches)
        began = time.perf_counter()
        for _ in range(STEPS.value * max(1, workers)):
            next(batches)
        return STEPS.value * max(1, workers) * BATCH.value / (time.perf_counter() - began)


def plain_loops(table: ClipTable, tokenizer: Tokenizer, clip: ClipSpec, processes: int, turn: int) -> float:
    """Clips a second of so many processes that decode and tokenize with nothing around it."""
    # Rows in the order in which a stream would shuffle them.
    rows = np.random.default_rng(turn).permutation(len(table))[: STEPS.value * BATCH.value]
    context = multiprocessing.get_context("spawn")
    # Set up as the loader's own workers are.
    with context.Pool(processes, initializer=end_with_parent) as pool:
        pool.map(_loop, [(table, tokenizer, clip, rows[:4])] * processes, chunksize=1)  # imports, page cache
        rates = pool.map(_loop, [(table, tokenizer, clip, rows)] * processes, chunksize=1)
    return float(sum(rates))


def _loop(job: tuple[ClipTable, Tokenizer, ClipSpec, np.ndarray]) -> float:
    table, tokenizer, clip, rows = job
    store = open_store(str(table.store))
    planner = TrainPlanner(table, store, clip, SEED)
    began = time.perf_counter()
    for index, row in enumerate(rows):
        plan = planner(index, int(row))
        store.decode(plan.video, plan.times_T, plan.crop, (clip.size, clip.size))
        tokenizer.encode([plan.text])
    return len(rows) / (time.perf_counter() - began)


def memory(table: ClipTable, tokenizer: Tokenizer, clip: ClipSpec) -> dict[str, Any]:
    """Memory of the whole family of processes, ten times over the run."""
    workers, points = int(WORKERS.value[-1]), []
    steps = -(-MEMORY.value // BATCH.value)
    print(f"{'':>15} {'own':>8} {'batches':>8} {'files':>8} {'all':>8}")
    with train_stream(table, tokenizer, clip, seed=SEED, batch_size=BATCH.value, workers=workers) as batches:
        for step in range(steps):
            next(batches)
            if (step + 1) % max(1, steps // 10) == 0:
                points.append(family_memory())
                shown = [*points[-1].values(), sum(points[-1].values())]
                print(
                    f"{(step + 1) * BATCH.value:>9} clips", *(f"{size / 1e6:8.1f}" for size in shown), "MB", flush=True
                )
    # The first tenth fills caches of decoders and pages.
    settled = points[1:] or points
    spread = {}
    for what, sizes in {
        "own": [point["Anon"] for point in settled],
        "all": [sum(point.values()) for point in settled],
    }.items():
        spread[what] = max(sizes) / min(sizes) - 1
    print(f"after the first tenth, own memory varies by {spread['own']:.1%}, all of it by {spread['all']:.1%}")
    return {"memory": points, "memory_spread": spread}


def family_memory() -> dict[str, int]:
    """Bytes of this process and its descendants, shared pages divided among them: anonymous, shared memory, files."""
    family, total = [os.getpid()], dict.fromkeys(("Anon", "Shmem", "File"), 0)
    while family:
        pid = family.pop()
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:  # it ended just now
            continue
        for kind in total:
            total[kind] += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(f"Pss_{kind}:"))
        family += [int(child) for child in children]
    return total


def make_table(folder: Path, videos: int = 4, seconds: int = 15, fps: int = 30) -> ClipTable:
    """Drifting textures, cut as a user's videos would be; every clip is one to two seconds long."""
    settings = PrecutSettings(chunk_seconds=seconds, fps=fps, encode=ENCODINGS[ENCODING.value])
    for number in range(videos):
        frames = footage(number, seconds * fps)
        (folder / f"video{number}.mp4").write_bytes(encode_mp4(frames, fps=Fraction(fps), settings=settings.encode))
    sources = [(f"video{number}", folder / f"video{number}.mp4") for number in range(videos)]
    precut(sources, folder / "store", settings, workers=2)
    rng = np.random.default_rng(0)
    clips = [(name, start / 50) for name, _ in sources for start in range(50 * (seconds - 2))]
    columns: dict[str, Sequence[Any]] = {
        "video": [name for name, _ in clips],
        "start": [start for _, start in clips],
        "end": [start + rng.uniform(1, 2) for _, start in clips],
        "texts": [[f"{name} at second {start:.2f}"] for name, start in clips],
    }
    return ClipTable.from_columns(columns, store=folder / "store").save(folder / "clips.arrow")


if __name__ == "__main__":
    app.run(main)
