"""A sweep as a picture: metrics over the operations of a clip, as SVG that stands by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vidlang.serve.dial_figures import GLOBAL, LOCAL, PALE, RANDOM, svg, text
from vidlang.serve.report_figures import nice_ticks, short
from vidlang.serve.sweep import Point

WIDTH, HEIGHT = 560, 380
# Names of presets stand slanted above their points, the last one beyond the axis.
LEFT, RIGHT, TOP, BOTTOM = 60, 70, 96, 80
COLOURS = (LOCAL, RANDOM, GLOBAL, "#0b7f71", "#b03060")


def sweep_figure(points: Sequence[Point], metrics: Sequence[str], flops: str) -> str:
    """One curve a metric over the operations that `flops` counts, on an axis whose steps are equal ratios."""
    if not any(flops in point.flops for point in points):
        known = sorted({name for point in points for name in point.flops})
        raise ValueError(f"operations were not counted as {flops!r}; there are: {', '.join(known) or 'none'}")
    curves = {name: _curve(points, name, flops) for name in metrics}
    costs = sorted({cost for curve in curves.values() for cost, _, _ in curve})
    low, high = math.log(costs[0]), math.log(costs[-1])
    values = [value for curve in curves.values() for _, value, _ in curve if math.isfinite(value)]
    ticks = nice_ticks(min(0.0, *values), max(values)) if values else [0.0, 1.0]

    def x(cost: float) -> float:
        share = (math.log(cost) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        parts += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick)), text(LEFT - 8, y(tick) + 4, short(tick), "end")]
    for cost in costs:
        names = sorted({name for curve in curves.values() for at, _, name in curve if at == cost})
        parts += [
            line(x(cost), TOP, x(cost), HEIGHT - BOTTOM),
            slanted(x(cost), TOP - 6, ", ".join(names), -45, "start"),
            slanted(x(cost), HEIGHT - BOTTOM + 14, short(cost / 1e9), -45, "end"),
        ]
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        finite = [(x(cost), y(value)) for cost, value, _ in curve if math.isfinite(value)]
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in finite)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in finite]
        row = HEIGHT + 16 * number
        parts += [f'<rect x="{LEFT}" y="{row - 8}" width="18" height="4" fill="{colour}"/>', text(LEFT + 26, row, name)]
    parts.append(text(WIDTH - RIGHT, HEIGHT - 18, f"GFLOP of a clip ({flops})", "end"))
    return svg(WIDTH, HEIGHT + 16 * len(curves), parts)


def _curve(points: Sequence[Point], metric: str, flops: str) -> list[tuple[float, float, str]]:
    """(operations, value, preset) of each point that has the metric, from the cheapest on."""
    return sorted(
        (p.flops[flops], p.metrics[metric], p.preset) for p in points if metric in p.metrics and flops in p.flops
    )


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A pale line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{PALE}"/>'


def slanted(x: float, y: float, words: str, degrees: float, anchor: str) -> str:
    """A line of text, turned about its own place."""
    turned = text(x, y, words, anchor)
    return turned.replace("<text ", f'<text transform="rotate({degrees:g} {x:g} {y:g})" ', 1)
