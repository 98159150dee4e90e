"""Attention alone, dense against sparse: time and temporary memory of forward and backward, all sides in one run.

    python -m benchmarks.attention                 4 heads x 64, some two minutes on two cores
    python -m benchmarks.attention --heads=12      ViT-B's, three times that
    python -m benchmarks.attention --json          the same as one line of JSON

One clip of T frames of 196 tokens and a cls token, float32; edges are (local, random, block). On a GPU a second table
compares the kernels there in bfloat16: cuDNN's dense attention, sparse by gather and by Pallas. Ratios are to the
first line of their table and size; memory is the compiler's count of bytes beyond inputs and outputs.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import app, flags

from benchmarks._common import take_turns
from vidlang.ops.attention import attend
from vidlang.ops.block_sparse import sparse_attention
from vidlang.ops.edges import Edges, density, draw

_FRAMES = flags.DEFINE_multi_integer("frames", [4, 8, 16], "Frames T of the clips of the first table.")
_GPU_FRAMES = flags.DEFINE_multi_integer("gpu_frames", [4, 16, 64], "Frames T of the clips of the GPU's table.")
_HEADS = flags.DEFINE_integer("heads", 4, "Heads of 64 channels.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls of each; the median is shown.")
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of tables.")

PATCHES, HEAD_SIZE = 196, 64
# Name of a side -> (edges or None for dense, implementation). The first is what the others are compared to.
Sides = dict[str, tuple[Edges | None, str]]
ANYWHERE: Sides = {
    "dense reference": (None, "reference"),
    "dense fused": (None, "fused"),
    "dense chunked": (None, "chunked"),
    "(1, 3, 56) gather": (Edges(1, 3, 56), "gather"),
    "(1, 5, 56) gather": (Edges(1, 5, 56), "gather"),
    "(1, 5, 56) slots": (Edges(1, 5, 56), "slots"),
}
ON_GPU: Sides = {
    "dense cuDNN": (None, "fused"),
    "(1, 5, 56) gather": (Edges(1, 5, 56), "gather"),
    "(1, 3, 56) pallas": (Edges(1, 3, 56), "pallas"),
    "(1, 5, 56) pallas": (Edges(1, 5, 56), "pallas"),
}


def side(frames: int, dtype: Any, edges: Edges | None, implementation: str) -> tuple[Any, tuple[Any, ...], float]:
    """A compiled gradient step of attention, its arguments, and the share of all edges that it has."""
    tokens = frames * PATCHES
    rng = np.random.default_rng(0)
    shape = (1, tokens + 1, _HEADS.value, HEAD_SIZE)
    arrays: tuple[Any, ...] = tuple(jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    share = 1.0
    if edges is not None:
        graph = draw(edges, jax.random.key(0), tokens)
        arrays, share = (*arrays, graph), float(density(graph))

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, graph: Any = None) -> jax.Array:
        if graph is None:
            return attend(q, k, v, implementation=implementation)
        return sparse_attention(q, k, v, graph, globals=1, implementation=implementation)

    def step(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array, *graph: Any) -> Any:
        o, pull = jax.vjp(lambda q, k, v: attention(q, k, v, *graph), q, k, v)
        return o, pull(do)

    return jax.jit(step).lower(*arrays).compile(), arrays, share


def table(sides: Sides, frames: Sequence[int], dtype: Any) -> list[dict[str, Any]]:
    """One row for each side and size."""
    rows = []
    for count in frames:
        programs = [side(count, dtype, *how) for how in sides.values()]
        times = take_turns([functools.partial(program, *arrays) for program, arrays, _ in programs], _REPEATS.value)
        sizes = [program.memory_analysis().temp_size_in_bytes for program, _, _ in programs]
        for name, (_, _, share), took, size in zip(sides, programs, times, sizes, strict=True):
            rows.append(
                {
                    "frames": count,
                    "side": name,
                    "edges_share": share,
                    "seconds": took,
                    "temporary_bytes": size,
                    "time_ratio": took / times[0],
                    "memory_ratio": size / sizes[0],
                }
            )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table."""
    print(f"{title}\n   T  {'side':<19}  edges      ms a step  of dense   temporary MB  of dense")
    for row in rows:
        print(
            f"{row['frames']:4d}  {row['side']:<19}  {row['edges_share']:5.3f}  {1e3 * row['seconds']:12.1f}"
            f"  {row['time_ratio']:8.3f}  {row['temporary_bytes'] / 1e6:13.1f}  {row['memory_ratio']:8.3f}"
        )


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    machine = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "heads": _HEADS.value,
        "repeats": _REPEATS.value,
    }
    tables = {"float32": table(ANYWHERE, _FRAMES.value, jnp.float32)}
    if jax.default_backend() == "gpu":
        tables["bfloat16 on GPU"] = table(ON_GPU, _GPU_FRAMES.value, jnp.bfloat16)
    if _JSON.value:
        print(json.dumps({"machine": machine, "tables": tables}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for title, rows in tables.items():
        show(title, rows)


if __name__ == "__main__":
    app.run(main)
