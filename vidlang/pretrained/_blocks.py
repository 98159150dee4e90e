"""Rules of what most families share: linear maps and norms as PyTorch names and lays them out, and blocks of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.pretrained._names import Rule

Shape = tuple[int, ...]


def linear(ours: str, theirs: str, into: Shape, out: Shape, layers: int = 0, *, bias: bool = True) -> list[Rule]:
    """Rules of a linear map: theirs is a matrix [out, into], ours has the axes `into` and then `out`."""
    kernel = (
        functools.partial(_turned, shape=(*into, *out)),
        functools.partial(_turned_back, shape=(math.prod(into), math.prod(out))),
    )
    rules = [Rule(f"{ours}/kernel", f"{theirs}.weight", (*into, *out), layers, *kernel)]
    if bias:
        offset = functools.partial(np.reshape, shape=out), functools.partial(np.reshape, shape=(-1,))
        rules.append(Rule(f"{ours}/bias", f"{theirs}.bias", out, layers, *offset))
    return rules


def norm(ours: str, theirs: str, width: int, layers: int = 0) -> list[Rule]:
    """Rules of a layer norm."""
    ends = (("scale", "weight"), ("bias", "bias"))
    return [Rule(f"{ours}/{here}", f"{theirs}.{there}", (width,), layers) for here, there in ends]


def blocks(ours: str, theirs: Mapping[str, str], s: TransformerSpec, *, read_width: int = 0) -> list[Rule]:
    """Rules of the stacked layers at the path `ours`.

    theirs: for each part of a layer its published name, with {} for the number of the layer, as in
    {"attention/query": "encoder.layer.{}.attention.self.query", ..., "mlp_norm": "encoder.layer.{}.output.LayerNorm"}.
    read_width: of the tokens that a cross-attention reads.
    """
    width: Shape = (s.width,)
    heads: Shape = (s.heads, s.head_size)
    rules: list[Rule] = []
    for part, name in theirs.items():
        into, out = width, width
        last = part.rsplit("/", 1)[-1]
        if last.endswith("norm"):
            rules += norm(f"{ours}/{part}", name, s.width, s.layers)
            continue
        if last in ("query", "key", "value"):
            into, out = ((read_width,) if part.startswith("cross") and last != "query" else width), heads
        elif last == "out":
            into = heads
        elif last == "mlp_in":
            out = (s.mlp,)
        elif last == "mlp_out":
            into = (s.mlp,)
        rules += linear(f"{ours}/{part}", name, into, out, s.layers)
    return rules


def _turned(x: np.ndarray, shape: Shape) -> np.ndarray:
    if x.ndim != 2:
        raise ValueError(f"a matrix was expected, not {x.shape}")
    return x.T.reshape(shape)


def _turned_back(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.reshape(shape).T
