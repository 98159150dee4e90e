"""Chunked against plain symmetric InfoNCE: time and temporary memory of value and gradients, in one run.

    python -m benchmarks.contrastive

The plain form holds the whole B x B logits, the chunked one a few rows of them; for that it multiplies matrices 8
times where the plain one does 3 times, so on one device it is slower the wider the embeddings are. Temporary memory is
what the compiler reserves beyond inputs and outputs. Takes under a minute on two idle cores.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import app, flags

from vidlang.objectives import contrastive

_BATCHES = flags.DEFINE_multi_integer("batch", [1024, 2048, 4096], "Batch sizes to measure.")
_CHUNK = flags.DEFINE_integer("chunk", 256, "Rows worked on at once.")
_WIDTH = flags.DEFINE_integer("width", 256, "Size of the embeddings.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each; the median is shown.")


def plain(video_BE: jax.Array, text_BE: jax.Array, scale: jax.Array) -> jax.Array:
    """The loss as one writes it down, at the same matrix precision as the chunked one."""
    logits_BS = scale * jnp.einsum("BE,SE->BS", video_BE, text_BE, precision=jax.lax.Precision.HIGHEST)
    own_B = jnp.diagonal(logits_BS)
    v2t_B = jax.nn.logsumexp(logits_BS, axis=1) - own_B
    t2v_B = jax.nn.logsumexp(logits_BS, axis=0) - own_B
    return (v2t_B.mean() + t2v_B.mean()) / 2


def chunked(video_BE: jax.Array, text_BE: jax.Array, scale: jax.Array) -> jax.Array:
    """The loss that training uses, without its accuracies: the plain one computes none either."""
    outputs = types.SimpleNamespace(video_BE=video_BE, text_BE=text_BE, scale=scale)
    return contrastive.loss(outputs, {}, chunk=_CHUNK.value)[0]


def pairs(batch: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit embeddings whose pairs resemble each other."""
    rng = np.random.default_rng(0)
    video_BE = rng.normal(size=(batch, width)).astype(np.float32)
    text_BE = video_BE + rng.normal(size=(batch, width)).astype(np.float32)
    unit = [x_BE / np.linalg.norm(x_BE, axis=1, keepdims=True) for x_BE in (video_BE, text_BE)]
    return jnp.asarray(unit[0]), jnp.asarray(unit[1]), jnp.float32(14.3)


def measure(functions: Sequence[Callable[..., jax.Array]], batch: int) -> list[tuple[float, float, Any]]:
    """(median seconds, MiB of temporaries, result) of each; calls take turns, so both see the same machine."""
    arrays = pairs(batch, _WIDTH.value)
    compiled = [jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2))).lower(*arrays).compile() for f in functions]
    results = [jax.block_until_ready(program(*arrays)) for program in compiled]
    seconds: list[list[float]] = [[] for _ in compiled]
    for _ in range(_REPEATS.value):
        for program, times in zip(compiled, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            times.append(time.perf_counter() - start)
    return list(zip(map(statistics.median, seconds), map(temporaries, compiled), results, strict=True))


def temporaries(program: Any) -> float:
    """MiB that the compiled program reserves for intermediate values."""
    analysis = program.memory_analysis()
    if analysis is None:
        raise RuntimeError(f"the {jax.default_backend()} compiler does not tell how much memory its programs need")
    return analysis.temp_size_in_bytes / 2**20


def main(argv: Sequence[str]) -> None:
    """Prints one line a batch size."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    print(f"{device}, {platform.machine()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}")
    print(f"embeddings {_WIDTH.value} wide, chunk {_CHUNK.value}, float32, median of {_REPEATS.value}")
    print("  batch |  plain s  chunked s  chunked/plain |  plain MiB  chunked MiB  plain/chunked | same to")
    for batch in _BATCHES.value:
        (time_plain, memory_plain, one), (time_chunked, memory_chunked, other) = measure((plain, chunked), batch)
        # Largest difference of value and gradients, relative to the largest entry of each.
        leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        apart = max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in leaves)
        print(
            f"{batch:7d} | {time_plain:8.3f} {time_chunked:10.3f} {time_chunked / time_plain:14.2f} | "
            f"{memory_plain:10.1f} {memory_chunked:12.1f} {memory_plain / memory_chunked:14.1f} | {apart:.0e}"
        )


if __name__ == "__main__":
    app.run(main)
