"""What an exported video encoder weighs and takes at each width: parameters, bytes, and milliseconds of one clip.

    python -m benchmarks.export                 # ViT-B, two frames, minutes on two cores
    python -m benchmarks.export --size=tiny     # in seconds

Weights are random: neither size nor time depends on them. Both sides run the same cut-out model in float32 on the CPU,
ONNX Runtime from the exported file and JAX as it compiles the model here. All calls take turns, so that a busy machine
slows all of them alike. That both answer the same is checked first.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks._common import machine, take_turns
from vidlang.cost.parameters import count
from vidlang.models.classifier import Model
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import OFF
from vidlang.serve.export.folder import How, export_program, reader
from vidlang.serve.export.program import Program, programs, standalone
from vidlang.train.step import abstract_params

SIZES = {
    "B": {"layers": 12, "width": 768, "heads": 12, "mlp": 3072},
    "small": {"layers": 12, "width": 384, "heads": 8, "mlp": 1536},
    "tiny": {"layers": 4, "width": 128, "heads": 8, "mlp": 512},
}

SIZE = flags.DEFINE_enum("size", "B", list(SIZES), "Shape of the encoder.")
FRAMES = flags.DEFINE_integer("frames", 2, "Frames of 196 tokens.")
BATCH = flags.DEFINE_integer("batch", 1, "Clips of a call.")
WIDTHS = flags.DEFINE_list("widths", ["d-768", "d-576", "d-384", "d-192", "d-dec"], "Presets to cut the encoder at.")
FORMAT = flags.DEFINE_enum("format", "onnx", ["onnx", "stablehlo"], "Kind of file.")
REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls of each; the median is shown.")


def cut_out() -> dict[str, tuple[int, Program]]:
    """Parameters and program of the encoder under a head for 400 classes, at each width."""
    transformer: dict[str, Any] = {**SIZES[SIZE.value], "dtype": "float32"}
    model = Model(video={"transformer": transformer, "tubelet": (1, 16, 16), "pool": "cls"}, heads={"label": 400})
    fields = {"video_BTHWC": jax.ShapeDtypeStruct((1, FRAMES.value, 224, 224, 3), jnp.uint8)}
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), abstract_params(model, fields)
    )
    found = {}
    for width in WIDTHS.value:
        small, cut = slice_params(model, params, width, *fields.values())
        found[width] = count(cut), programs(standalone(small), cut, fields, OFF)[0]
    return found


def main(argv: list[str]) -> None:
    """Exports, checks, measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    print(f"{machine()}\n{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{SIZE.value}: {BATCH.value} clip(s) of {FRAMES.value} x 196 tokens + cls, {FORMAT.value} beside jax.jit")
    calls, sizes, counts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for width, (parameters, program) in cut_out().items():
            here = Path(folder) / width
            here.mkdir()
            card = export_program(program, here, How(FORMAT.value, platforms=("cpu",)))
            path, arrays = here / card["files"][0], program.example(BATCH.value)
            calls += [
                functools.partial(reader(path, FORMAT.value, program.output), arrays),
                functools.partial(jax.jit(program.function), **arrays),
            ]
            sizes.append(card["bytes"])
            counts.append(parameters)
        seconds = take_turns(calls, REPEATS.value)
    print(f"{'width':<12}{'parameters':>13}{'MB':>11}{'size':>7}{'file ms':>10}{'time':>7}{'jax ms':>10}{'time':>7}")
    for i, width in enumerate(WIDTHS.value):
        file, live = seconds[2 * i : 2 * i + 2]
        print(
            f"{width:<12}{counts[i]:>13,}{sizes[i] / 1e6:>11.2f}{sizes[i] / sizes[0]:>7.3f}"
            f"{1e3 * file:>10.2f}{file / seconds[0]:>7.3f}{1e3 * live:>10.2f}{live / seconds[1]:>7.3f}"
        )


if __name__ == "__main__":
    app.run(main)
