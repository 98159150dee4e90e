"""StableHLO files: what JAX makes of a program, parameters included, for any batch size; JAX alone runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from vidlang.serve.export.graph import BATCH
from vidlang.serve.export.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program, path: Path, platforms: Sequence[str] = PLATFORMS) -> tuple[list[Path], Any]:
    """Writes the program; returns the files that it is in, and what a batch of its output looks like.

    The program takes its inputs in their order.
    """
    if not platforms or (unknown := [name for name in platforms if name not in PLATFORMS]):
        raise ValueError(f"StableHLO is for some of {', '.join(PLATFORMS)}; found {', '.join(unknown) or 'none'}")
    (batch,) = export.symbolic_shape(BATCH)
    arguments = [jax.ShapeDtypeStruct((batch, *like.shape), like.dtype) for like in program.inputs.values()]

    def function(*arrays: jax.Array) -> jax.Array:
        return program.function(**dict(zip(program.inputs, arrays, strict=True)))

    exported = export.export(jax.jit(function), platforms=list(platforms))(*arguments)
    path.write_bytes(exported.serialize())
    return [path], exported.out_avals[0]


def read(path: Path) -> Callable[..., np.ndarray]:
    """The function in a file."""
    called = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda *arrays: np.asarray(called(*arrays))
