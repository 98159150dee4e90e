"""Curricula that a recipe can promise to follow; whether it does is checked before anything runs.

"sparse_expansion" is SViTT's temporal expansion: from stage to stage, clips get longer (eq. 14), a smaller share of the
tokens goes on at each pruning (eq. 15), and the blocks that a query attends to grow more slowly than the clips do
(eq. 16). What is dense comes first: it keeps everything and attends to everything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from vidlang.train import build, sources
from vidlang.train.recipe import Stage

CURRICULA = ("", "sparse_expansion")


def check(name: str, stages: Sequence[Stage]) -> None:
    """ValueError unless the stages follow the curriculum of this name; "" promises nothing."""
    if name not in CURRICULA:
        known = ", ".join(filter(None, CURRICULA))
        raise ValueError(f"unknown curriculum {name!r}; there is {known}, or leave the key out")
    if not name:
        return
    for before, after in itertools.pairwise(stages):
        for what, wanted, measure in RULES:
            one, other = measure(before), measure(after)
            both_dense = one == other and measure is not _frames and one in (1.0, math.inf)
            if not (other > one if measure is _frames else other < one or both_dense):
                raise ValueError(
                    f"the curriculum {name!r} wants {what} to {wanted} from stage to stage; it goes from {one:g} in "
                    f"{before.name!r} to {other:g} in {after.name!r}. Change these stages, or leave the curriculum out"
                )


def _frames(stage: Stage) -> float:
    return max(spec.frames for spec in sources.specs(stage))


def _keep(stage: Stage) -> float:
    """The least share of tokens that goes on at one pruning."""
    return min((rate for _, rate in build.dials(stage).keep), default=1.0)


def _density(stage: Stage) -> float:
    """Blocks that a query block attends to, for each frame."""
    edges = build.dials(stage).edges
    return math.inf if edges is None else (edges.local + edges.random) / _frames(stage)


RULES: tuple[tuple[str, str, Callable[[Stage], float]], ...] = (
    ("the number of frames", "rise", _frames),
    ("the share of tokens kept", "fall", _keep),
    ("the number of blocks attended to, for each frame,", "fall", _density),
)
