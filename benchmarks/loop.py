"""What the loop itself costs: milliseconds a step where the model is empty, and what a second start still compiles.

    python -m benchmarks.loop
    python -m benchmarks.loop --steps=5000 --json=loop.json

The first trains a model of one number through the whole loop: batches drawn ahead and sent, compiled steps, metrics
written at every step, a checkpoint every thousand. The batches are there already, for benchmarks/pipeline.py measures
how they are made. Beside it stands the bare step, called and waited for with
nothing around it. The second starts the demo's training (its model, on a few clips) twice in processes of their own,
with the run's own folder of compiled programs. Bars: 2 ms a step, and 0.3 of the first start's compile time.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import app, flags, logging

import vidlang.models
import vidlang.objectives
from benchmarks._common import machine
from vidlang.core.sharding import make_mesh, put_batch, use_mesh
from vidlang.data.pipeline import Batches
from vidlang.train import sources, stages
from vidlang.train.goodput import FILE
from vidlang.train.program import stage_program
from vidlang.train.recipe import read_recipe
from vidlang.train.step import device_fields

STEPS = flags.DEFINE_integer("steps", 3000, "Steps of the empty model.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

ROOT = Path(__file__).resolve().parents[1]
SAVE_EVERY = 1000
# Of a start, what may be compiled in it.
COMPILES = ("restore", "compile")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    print(machine())
    for package in (vidlang.models, vidlang.objectives):
        package.__path__.append(str(Path(__file__).parent / "_empty" / package.__name__.split(".")[-1]))
    with tempfile.TemporaryDirectory() as folder:
        results = {**overhead(Path(folder)), **starts(Path(folder))}
    print(
        f"\nempty model: {results['loop_ms']:.2f} ms a step in the loop, {results['bare_ms']:.2f} of it the bare step; "
        f"{results['save_ms']:.0f} ms for a checkpoint, {results['save_ms'] / SAVE_EVERY:.2f} a step\n"
        f"demo: {results['first_s']:.1f} s to compile at the first start, {results['second_s']:.1f} at the second, "
        f"{results['second_s'] / results['first_s']:.2f} of it"
    )
    if JSON.value:
        Path(JSON.value).write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")


def corpus(folder: Path) -> dict[str, Any]:
    """A few clips, which nobody looks at."""
    sizes = {"train_videos": 8, "val_videos": 2, "long_videos": 0, "scenes_per_video": 4, "scene_seconds": 1.0}
    return {"name": "synthetic", "root": str(folder / "corpus"), "workers": 1, **sizes, "size": 32, "split": "train"}


def empty_config(folder: Path) -> dict[str, Any]:
    """Texts alone, a model of one number."""
    stage = {
        "name": "empty",
        "duration": f"{STEPS.value} steps",
        "batch_size": 8,
        "model": {"name": "empty"},
        "data": corpus(folder),
        "clip": {"frames": 0, "text_length": 8},
        "tokenizer": f"{folder}/corpus/tokenizer.json",
        "objective": {"name": "square"},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"every": f"{SAVE_EVERY} steps"},
    }
    return {"name": "empty", "seed": 0, "stages": (stage,), "runtime": {"log_every": 10**9}}


class Ready:
    """A stream whose batches are all the first one."""

    restarts = 0

    def __init__(self, stream: Batches) -> None:
        with stream:
            self._batch = next(stream)

    def __enter__(self) -> Ready:
        return self

    def __exit__(self, *reason: object) -> None:
        pass

    def __next__(self) -> Mapping[str, np.ndarray]:
        return self._batch


def overhead(folder: Path) -> dict[str, float]:
    """Milliseconds of a step in the loop and by itself, and of a save."""
    real = sources.train_stream
    with mock.patch.object(sources, "train_stream", lambda *given, **options: Ready(real(*given, **options))):
        began = time.process_time()
        stages.train(empty_config(folder), folder / "empty")
        print(f"CPU seconds of the whole training: {time.process_time() - began:.1f}")
    spans = read_spans(folder / "empty")
    # From the first span that began warm.
    training = [span for span in spans if span["what"] == "train" and span.get("first", 0) > 0]
    saves = [span["seconds"] for span in spans if span["what"] == "checkpoint"]
    done = sum(span["last"] - span["first"] for span in training)
    in_loop = sum(span["seconds"] for span in training) / done
    waited = sum(span["waited"] for span in training) / done
    bare = bare_step(folder)
    return {
        "loop_ms": 1e3 * in_loop,
        "waited_ms": 1e3 * waited,
        "bare_ms": 1e3 * bare,
        "save_ms": 1e3 * statistics.median(saves),
    }


def bare_step(folder: Path, steps: int = 500) -> float:
    """Median seconds of the compiled step, with a batch that lies on the devices."""
    recipe = read_recipe(empty_config(folder))
    stage, mesh = recipe.stages[0], make_mesh(recipe.mesh)
    clips = sources.tables(stage)
    fields = next(iter(sources.batch_fields(stage, clips).values()))
    with use_mesh(mesh), sources.train_stream(recipe, 0, clips, start_step=0) as stream:
        batch = put_batch(device_fields(next(stream)), mesh)
        program = stage_program(recipe, 0, fields, steps)
        state, step = program.born(mesh, 0), program.compile(mesh)
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            state, scalars = step(state, batch)
            jax.block_until_ready(scalars)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def starts(folder: Path) -> dict[str, float]:
    """Seconds that a first start and a second one of the demo's training spend where programs are compiled."""
    found = []
    for _ in range(2):
        script = "import sys; from benchmarks.loop import start_demo; start_demo(sys.argv[1])"
        subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        spans = read_spans(folder / "demo")
        run = spans[-1]["run"]
        found.append(sum(span["seconds"] for span in spans if span["run"] == run and span["what"] in COMPILES))
    return {"first_s": found[0], "second_s": found[1]}


def start_demo(folder: str) -> None:
    """One step of the demo's training, from the beginning."""
    from configs import demo

    config = demo.get_config().to_dict()
    stage = config["stages"][0]
    changes = {
        "duration": "1 step",
        "batch_size": 8,
        "data": corpus(Path(folder)),
        "tokenizer": f"{folder}/corpus/tokenizer.json",
        "optimizer": {**stage["optimizer"], "warmup": "0 steps"},
        "checkpoint": {},
        "evals": (),
    }
    stages.train({**config, "stages": ({**stage, **changes},), "runtime": {}}, Path(folder) / "demo")
    # The next start finds nothing but the programs.
    shutil.rmtree(next((Path(folder) / "demo").glob("0_*")))


def read_spans(workdir: Path) -> list[dict[str, Any]]:
    """What a run wrote of where its time went."""
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


if __name__ == "__main__":
    app.run(main)
