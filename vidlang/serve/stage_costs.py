"""What a clip costs in each stage of a run: its tokens and operations under the stage's dials, and with all dials off.

Only shapes are needed, so it is known before a stage begins. A stage that something cannot be counted for, as the
papers' formulas cannot a model without a grid of tokens, lacks that number and has the reason.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

from vidlang.cost.flops import CONVENTIONS
from vidlang.cost.program import build_program, forward_flops
from vidlang.cost.settings import video_stack
from vidlang.ops.dials import Dials
from vidlang.train import build, sources
from vidlang.train.recipe import Recipe, Stage

# SViTT's formula for the video encoder, and what the whole model's program does; see docs/cost.md.
COUNTED = ("svitt", "true")


@dataclass(frozen=True)
class StageCost:
    """One stage's clip in training; of a mixture, its largest.

    dials: in words. tokens: of the video, in the first and in the last layer, None where there is no grid of them.
    own, off: operations of a forward pass by the way of counting, under the stage's dials and under none. reasons: why
    what is missing cannot be counted.
    """

    stage: str
    frames: int
    dials: str
    tokens: tuple[int, int] | None
    own: dict[str, float]
    off: dict[str, float]
    reasons: tuple[str, ...] = ()

    def share(self, count: str) -> float | None:
        """Operations relative to all dials off."""
        return self.own[count] / self.off[count] if count in self.own and self.off.get(count) else None


def stage_cost(recipe: Recipe, index: int, counts: Sequence[str] = COUNTED) -> StageCost:
    """The cost of stage `index`, counted in these ways."""
    stage = recipe.stages[index]
    reasons: list[str] = []
    shape = _told("tokens", lambda: video_stack(stage), reasons)
    own = _counted(recipe, index, stage, counts, "", reasons)
    off = own
    if build.dials(stage) != Dials():
        without = dataclasses.replace(stage, dials={})
        off = _counted(recipe, index, without, counts, " with all dials off", reasons)
    return StageCost(
        stage.name,
        max(spec.frames for spec in sources.specs(stage)),
        describe(build.dials(stage)),
        None if shape is None else (shape.tokens[0], shape.tokens[-1]),
        own,
        off,
        tuple(reasons),
    )


def _counted(
    recipe: Recipe, index: int, stage: Stage, counts: Sequence[str], where: str, reasons: list[str]
) -> dict[str, float]:
    """Operations with `stage` in its place in the recipe, by each way that can count them."""
    found = {}
    for name in counts:
        value = _told(f"GFLOP {name}{where}", functools.partial(_count, recipe, index, stage, name), reasons)
        if value is not None:
            found[name] = value
    return found


def _count(recipe: Recipe, index: int, stage: Stage, count: str) -> float:
    if count in CONVENTIONS:
        return float(CONVENTIONS[count](video_stack(stage)))
    stages = (*recipe.stages[:index], stage, *recipe.stages[index + 1 :])
    return forward_flops(build_program(dataclasses.replace(recipe, stages=stages), index))


def _told(what: str, count: Callable[[], Any], reasons: list[str]) -> Any:
    """What `count` finds; None where it cannot be found, which is logged and noted in `reasons`."""
    try:
        return count()
    except (ValueError, OSError) as error:
        logging.warning("%s cannot be counted: %s", what, error)
        reasons.append(f"{what}: {error}")
        return None


def describe(dials: Dials) -> str:
    """Dials in words, layers counted from 0 as in a config."""
    parts = []
    if dials.mask:
        parts.append(f"mask {dials.mask:g}" + (f" ({dials.mask_kind})" if dials.mask_kind != "random" else ""))
    if dials.widths is not None:
        fixed = isinstance(dials.widths, str | tuple)
        parts.append(f"widths {dials.widths}" if fixed else "widths drawn in each step, counted at the widest")
    if dials.edges is not None:
        parts.append(f"edges ({dials.edges.local}, {dials.edges.random}, {dials.edges.block})")
    for name, pairs in (("keep", dials.keep), ("keep_text", dials.keep_text)):
        if pairs:
            rates = [f"{rate:g}" for _, rate in pairs]
            layers = ", ".join(str(layer) for layer, _ in pairs)
            parts.append(
                f"{name} {rates[0] if len(set(rates)) == 1 else ', '.join(rates)} "
                f"after layer{'s' if len(pairs) > 1 else ''} {layers}"
            )
    return "; ".join(parts) or "all off"
