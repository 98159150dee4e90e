"""How many clips a second reach the train loop: a plain Python loop against the loader with 0, 1 and 2 workers.

    python -m benchmarks.loader                                    # encodes a few small videos first
    python -m benchmarks.loader --table=clips.arrow --workers=0,4,8

The plain loop decodes the very clips of the same steps, one after another, so it shows what the loader costs (0
workers) or brings (more). The first batch is not timed; `start` is what it took, with starting the processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.encode import encode_mp4
from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.plan import TrainPlanner
from vidlang.data.precut import PrecutSettings, cut_video
from vidlang.data.stores.writer import write_store
from vidlang.data.tokenizer import Tokenizer, train_wordlevel

TABLE = flags.DEFINE_string("table", None, "A saved clip table with its store; by default a small one is made.")
WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to try.")
FRAMES = flags.DEFINE_integer("frames", 4, "Frames of a clip.")
SIZE = flags.DEFINE_integer("size", 224, "Height and width of a clip.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Clips in a batch.")
STEPS = flags.DEFINE_integer("steps", 12, "Batches to time.")

SEED, LENGTH = 0, 16


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = ClipTable.open(TABLE.value) if TABLE.value else make_table(Path(folder))
        words = Path(folder) / "tokenizer.json"
        train_wordlevel((text for i in range(min(len(table), 1000)) for text in table.cell(i, "texts")), words)
        tokenizer = Tokenizer(words, LENGTH)
        spec = ClipSpec(
            frames=FRAMES.value,
            size=SIZE.value,
            times={"name": "segments"},
            crop={"name": "random_resized"},
            text_length=LENGTH,
        )
        print(f"{len(table)} clips, {FRAMES.value} frames of {SIZE.value} x {SIZE.value}, batches of {BATCH.value}")
        report("plain loop", 0.0, plain_loop(table, tokenizer, spec))
        for workers in map(int, WORKERS.value):
            report(f"{workers} workers", *loader(table, tokenizer, spec, workers))


def loader(table: ClipTable, tokenizer: Tokenizer, spec: ClipSpec, workers: int) -> tuple[float, float]:
    """Seconds to the first batch, and seconds for all further ones."""
    began = time.perf_counter()
    with train_stream(table, tokenizer, spec, seed=SEED, batch_size=BATCH.value, workers=workers) as batches:
        next(batches)
        first = time.perf_counter()
        for _ in range(STEPS.value):
            next(batches)
        return first - began, time.perf_counter() - first


def plain_loop(table: ClipTable, tokenizer: Tokenizer, spec: ClipSpec) -> float:
    """Seconds to decode and tokenize the same clips with nothing around it."""
    with train_stream(table, tokenizer, spec, seed=SEED, batch_size=BATCH.value, prefetch=0) as batches:
        index_SB = [next(batches)["index_B"] for _ in range(STEPS.value + 1)][1:]
    store = open_store(str(table.store))
    planner = TrainPlanner(table, store, spec, SEED)
    began = time.perf_counter()
    for step, index_B in enumerate(index_SB, start=1):
        plans = [planner(step * BATCH.value + i, int(row)) for i, row in enumerate(index_B)]
        np.stack([store.decode(plan.video, plan.times_T, plan.crop, (spec.size, spec.size)) for plan in plans])
        np.concatenate([tokenizer.encode([plan.text]) for plan in plans])
    return time.perf_counter() - began


def report(name: str, start: float, seconds: float) -> None:
    clips = STEPS.value * BATCH.value
    print(f"{name:>12}: {clips / seconds:7.1f} clips/s   start {start:5.2f} s", flush=True)


def make_table(folder: Path, videos: int = 3, seconds: int = 15, fps: int = 30) -> ClipTable:
    """A few videos of drifting texture at the house's chunk settings, and fifty clips of two seconds in each second."""
    settings = PrecutSettings(chunk_seconds=seconds, fps=fps, short_side=288)
    cut = []
    for number in range(videos):
        path = folder / f"video{number}.mp4"
        path.write_bytes(encode_mp4(texture(number, seconds * fps), fps=Fraction(fps), settings=settings.encode))
        cut.append(cut_video(path, path.stem, settings))
    write_store(folder / "store", cut, settings)
    clips = [(video.name, start / 50) for video in cut for start in range(50 * (seconds - 2))]
    columns: dict[str, Sequence[Any]] = {
        "video": [name for name, _ in clips],
        "start": [start for _, start in clips],
        "end": [start + 2 for _, start in clips],
        "texts": [[f"{name} at second {start:.2f}"] for name, start in clips],
    }
    return ClipTable.from_columns(columns, store=folder / "store").save(folder / "clips.arrow")


def texture(seed: int, frames: int, height: int = 288, width: int = 384) -> Iterator[np.ndarray]:
    """Blocks of random colour that drift, with a little noise: about as hard to code as plain footage."""
    rng = np.random.default_rng(seed)
    scene_HWC = rng.integers(0, 256, (height // 8, width // 4, 3)).repeat(16, 0).repeat(16, 1)
    for k in range(frames):
        view_HWC = scene_HWC[k // 2 : k // 2 + height, k : k + width]
        yield np.clip(view_HWC + rng.normal(0, 4, view_HWC.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    app.run(main)
