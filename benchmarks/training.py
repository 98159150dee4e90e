"""Clips a second and share of the card's peak: AVION's train step on the devices here, and fed with real chunks.

    python -m benchmarks.training                          # ViT-B, 4 x 224 px, bfloat16, the largest batch that fits
    python -m benchmarks.training --model=L --chunks=0     # the step alone, without an input pipeline
    python -m benchmarks.training --batch=8 --layers=1 --size=64               # quicker, to try it on a CPU

The step is that of `configs/avion_ego4d.py` (dual encoder, contrastive, AdamW), with each policy of recomputation, on a
batch that lies on the devices. "peak" is what a product of large bfloat16 matrices reaches here, measured in the same
run. "own" counts the operations that the model needs, "with what is done again" all that the step does: the first is
the usual MFU. Then the same training runs from H.264 chunks through the whole loop with Grain's workers; its clips a
second stand beside those of the step alone, and "cores" is how many of these cores would feed the step.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks._common import machine
from configs import avion_ego4d
from vidlang.core.metrics import read_history
from vidlang.core.sharding import batch_ways, make_mesh, put_batch, use_mesh
from vidlang.cost.program import build_program, memory_of, step_flops, step_memory
from vidlang.train import stages
from vidlang.train.program import Program
from vidlang.train.recipe import read_recipe

MODEL = flags.DEFINE_enum("model", "B", ["B", "L"], "Whose towers: CLIP's ViT-B/16 or ViT-L/14.")
BATCH = flags.DEFINE_integer("batch", 0, "Clips of a step; 0: the most that fit, on a CPU two.")
LAYERS = flags.DEFINE_integer("layers", 0, "Layers of both towers; 0: all of them.")
SIZE = flags.DEFINE_integer("size", 224, "Height and width of a frame.")
STEPS = flags.DEFINE_integer("steps", 0, "Steps of each round; five rounds, medians. 0: ten, on a CPU one.")
REMAT = flags.DEFINE_multi_enum("remat", ["none", "full"], ["none", "dots", "full"], "What the backward pass redoes.")
CHUNKS = flags.DEFINE_integer("chunks", -1, "Steps of the training from chunks; 0: none. -1: sixty, on a CPU six.")
WORKERS = flags.DEFINE_integer("workers", -1, "Processes that decode; -1: as many as there are cores.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

ROUNDS = 5
# Of a device's memory, what the compiler's plan may fill: batches on their way and fragments come on top.
FILLED = 0.92
MULTIPLE, FRAMES = 16, 4
# Of the time, how long the devices may wait for data.
WAIT = 0.03
HEAD = "| remat | clips | GB planned | clips/s | tokens/s | own | with what is done again |"
LINE = (
    "| {remat} | {batch} | {memory_gb:.3g} | {clips_per_second:.4g} | {tokens_per_second:.3g} | {own_share:.1%} | "
    "{whole_share:.1%} |"
)


def config_of(remat: str, batch: int, **changes: Any) -> dict[str, Any]:
    """AVION's recipe at this policy and batch; `changes` replace keys of its stage."""
    found: dict[str, Any] = avion_ego4d.get_config(f"vit_{MODEL.value.lower()}").to_dict()
    stage: dict[str, Any] = found["stages"][0].to_dict()
    for tower in ("video", "text"):
        layers = {"layers": LAYERS.value} if LAYERS.value else {}
        stage["model"][tower]["transformer"] |= {"remat": remat, **layers}
    clip = {**stage["clip"], "size": SIZE.value}
    stage |= {"batch_size": batch, "clip": clip, "evals": (), "checkpoint": {}, "duration": "1000 steps", **changes}
    return {**found, "stages": (stage,)}


def program_of(remat: str, batch: int) -> Program:
    """The step in shapes."""
    return build_program(read_recipe(config_of(remat, batch)), 0)


class Step:
    """A compiled step with its state and a batch, on all devices here."""

    def __init__(self, remat: str, batch: int) -> None:
        self.program, mesh = program_of(remat, batch), make_mesh({"data": -1})
        with use_mesh(mesh):
            self._state, self._step = self.program.born(mesh, 0), self.program.compile(mesh)
            self._batch = put_batch(_any_batch(self.program.fields), mesh)
        self.memory = memory_of(self._step, mesh).total

    def run(self, steps: int) -> float:
        """Seconds of a step, one after another."""
        began = time.perf_counter()
        for _ in range(steps):
            self._state, scalars = self._step(self._state, self._batch)
        jax.block_until_ready(scalars)
        return (time.perf_counter() - began) / steps


def _any_batch(fields: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """Pixels and words by chance."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 2 if field.dtype == bool else 200, field.shape).astype(field.dtype)
        for name, field in fields.items()
    }


def largest(remat: str) -> int:
    """The most clips that fit: planned from the compiler's counts at two sizes, which grow by the clip."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        raise ValueError("devices here do not tell how much memory they have; give --batch, as in --batch=8")
    mesh = make_mesh({"data": -1})
    ways = batch_ways(mesh)
    few, more = (step_memory(program_of(remat, clips * ways), mesh).total for clips in (MULTIPLE, 2 * MULTIPLE))
    clips = MULTIPLE + int((FILLED * limit - few) / ((more - few) / MULTIPLE))
    return clips // MULTIPLE * MULTIPLE * ways


def row(remat: str, peak: float) -> dict[str, Any]:
    """Figures of the step alone; where the plan was too bold, with fewer clips."""
    batch = BATCH.value or (2 if on_cpu() else largest(remat))
    while True:
        try:
            step = Step(remat, batch)
            step.run(2)
            break
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or BATCH.value or batch <= MULTIPLE:
                raise
            print(f"{batch} clips with remat={remat} do not fit after all; trying fewer", flush=True)
            batch = batch * 9 // 10 // MULTIPLE * MULTIPLE
    steps = STEPS.value or (1 if on_cpu() else 10)
    seconds = statistics.median(step.run(steps) for _ in range(ROUNDS))
    done = step_flops(step.program)
    own = done if remat == "none" else step_flops(program_of("none", batch))
    devices, patch = jax.device_count(), {"B": 16, "L": 14}[MODEL.value]
    return {
        "remat": remat,
        "batch": batch,
        "memory_gb": step.memory / 1e9,
        "clips_per_second": batch / seconds,
        "tokens_per_second": batch * FRAMES * (SIZE.value // patch) ** 2 / seconds,
        "own_share": own / seconds / (peak * devices),
        "whole_share": done / seconds / (peak * devices),
        "teraflops": own / seconds / devices / 1e12,
    }


def on_cpu() -> bool:
    """Where everything takes so long that less must do."""
    return jax.default_backend() == "cpu"


def matmul_peak(rounds: int = 5, products: int = 8) -> float:
    """Operations a second of the best of a few chains of bfloat16 products on one device."""
    size = 2048 if on_cpu() else 8192
    x = jnp.full((size, size), 1 / size, jnp.bfloat16)

    @jax.jit
    def chain(x: jax.Array) -> jax.Array:
        y = x
        for _ in range(products):
            y = y @ x
        return y

    chain(x).block_until_ready()
    return 2 * products * size**3 / min(_seconds(lambda: chain(x)) for _ in range(rounds))


def _seconds(call: Callable[[], jax.Array]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def from_chunks(found: Mapping[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """The same step inside the whole training, from chunks made here; its first third warms up."""
    data = {
        **{"name": "synthetic", "root": str(folder / "corpus"), "split": "train", "train_videos": 64, "val_videos": 2},
        **{"long_videos": 0, "scenes_per_video": 4, "scene_seconds": 4.0, "size": 288, "fps": 30},
    }
    changes = {"data": data, "tokenizer": f"{folder}/corpus/tokenizer.json", "duration": f"{steps} steps"}
    config = config_of(found["remat"], found["batch"], **changes)
    config["runtime"] = {"workers": WORKERS.value, "log_every": max(1, steps // 6)}
    stages.train(config, folder / "run")
    history = [record for record in read_history(folder / "run" / "0_pretrain" / "metrics.jsonl") if "loss" in record]
    late = history[len(history) // 3 :]
    rate, wait = (statistics.median(record[name] for record in late) for name in ("clips_per_second", "data_wait"))
    return {"clips_per_second": rate, "data_wait": wait}


def show_chunks(remat: str, alone: float, found: Mapping[str, Any]) -> str:
    """The training from chunks in a sentence, with the cores that it lacks."""
    rate, wait, cores = found["clips_per_second"], found["data_wait"], len(os.sched_getaffinity(0))
    lacks = (
        f"; about {cores * alone / rate:.0f} such cores would feed the step, here are {cores}" if wait > WAIT else ""
    )
    return (
        f"from chunks, remat={remat}: {rate:.4g} clips/s, {rate / alone:.2f} of the step alone, "
        f"waiting for data {wait:.1%} of the time{lacks}"
    )


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    device, peak = jax.devices()[0].device_kind, matmul_peak()
    print(
        f"{machine()}\n{jax.device_count()} x {device}, jax {jax.__version__}, {peak / 1e12:.3g} TFLOP/s at most each"
    )
    print(f"\nViT-{MODEL.value}, {FRAMES} x {SIZE.value} px\n\n{HEAD}\n{'|---' * HEAD.count(' | ')}|---|")
    rows = []
    for remat in REMAT.value:
        rows.append(row(remat, peak))
        print(LINE.format(**rows[-1]), flush=True)
    results: dict[str, Any] = {
        "machine": machine(),
        "device": device,
        "peak": peak,
        "model": MODEL.value,
        "steps": rows,
    }
    chunks = CHUNKS.value if CHUNKS.value >= 0 else (6 if on_cpu() else 60)
    if chunks:
        best = max(rows, key=lambda found: found["clips_per_second"])
        with tempfile.TemporaryDirectory() as folder:
            results["chunks"] = from_chunks(best, chunks, Path(folder))
        print("\n" + show_chunks(best["remat"], best["clips_per_second"], results["chunks"]))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
