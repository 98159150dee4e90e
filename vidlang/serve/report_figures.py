"""Curves as inline SVG: no library, no script, readable on paper, in the dark and by a screen reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 16, 44
# Ways in which a line can look; the style sheet has so many.
LINES = 8
POINTS = 240  # more logged steps than this are averaged


@dataclass(frozen=True)
class Series:
    """One curve: what it is called and its value at each step; values that are not finite leave a gap."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    share: bool = False,
    references: Sequence[tuple[str, float]] = (),
    numbers: Sequence[int] | None = None,
) -> str:
    """A figure with curves over steps; `share` shows values from 0 to 1 as percent, `references` are dashed levels.

    numbers: which line each curve is, where several charts have the same curves and not all have all.
    """
    drawn = [Series(s.label, *_thinned(s)) for s in series]
    lines = range(len(series)) if numbers is None else numbers
    finite = [v for s in drawn for v in s.values if math.isfinite(v)]
    levels = finite + [value for _, value in references]
    last = max((step for s in drawn for step in s.steps), default=0)
    if not finite:
        return f'<figure class="chart"><h3>{escape(title)}</h3><p class="note">No finite value was logged.</p></figure>'
    y_ticks = nice_ticks(min(0.0, *levels), max(levels))
    x = _scale(0, max(last, 1), LEFT, WIDTH - RIGHT)
    y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    unit = percent if share else short
    described = "; ".join(f"{s.label} ends at {unit(_last_finite(s.values))}" for s in drawn)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {described}")}">',
        *(_y_tick(y(value), unit(value).replace(".0\u00a0%", "\u00a0%")) for value in y_ticks),
        *(_x_tick(x(value), short(value)) for value in nice_ticks(0, max(last, 1)) if value <= max(last, 1)),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">step</text>',
        *(_reference(y(value), label, unit(value)) for label, value in references),
        *(_curve(s, number, x, y, unit) for number, s in zip(lines, drawn, strict=True)),
        "</svg>",
    ]
    legend = "".join(_legend(s, number, unit) for number, s in zip(lines, drawn, strict=True))
    averaged = max((len(s.steps) for s in series), default=0) > POINTS
    note = '<p class="note">Each point is the mean of neighbouring logged steps.</p>' if averaged else ""
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>{"".join(parts)}'
        f'<figcaption><ul class="legend">{legend}</ul>{note}</figcaption></figure>'
    )


def nice_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about so many of them."""
    span = high - low if high > low else abs(high) or 1.0
    rough = span / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    count = max(1, math.ceil(high / step - 1e-9) - first)
    return [float(f"{(first + i) * step:.12g}") for i in range(count + 1)]


def percent(value: float) -> str:
    """A share from 0 to 1 as percent, with one decimal."""
    return f"{value * 100:.1f}\u00a0%" if math.isfinite(value) else "–"


def short(value: float) -> str:
    """Three or four digits: 1200, 12k, 0.0003, 2.5e-05."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k" if abs(value) < 1e6 else f"{value / 1e6:.4g}M"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("e-0", "e-")


def _thinned(series: Series) -> tuple[list[float], list[float]]:
    """At most POINTS steps and values: means over equal numbers of neighbours, finite ones only."""
    if len(series.steps) <= POINTS:
        return list(series.steps), list(series.values)
    steps: list[float] = []
    values: list[float] = []
    for part in np.array_split(np.arange(len(series.steps)), POINTS):
        finite = [series.values[i] for i in part if math.isfinite(series.values[i])]
        # The first and last step keep their place on the axis.
        place = part[0] if not steps else part[-1]
        steps.append(float(series.steps[place]))
        values.append(float(np.mean(finite)) if finite else math.nan)
    return steps, values


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: round(start + (value - low) / (high - low) * (stop - start), 1)


def _y_tick(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>'
    )


def _x_tick(x: float, text: str) -> str:
    return f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'


def _reference(y: float, label: str, value: str) -> str:
    return (
        f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="reference-label" x="{WIDTH - RIGHT}" y="{y - 5}" text-anchor="end">'
        f"{escape(label)} {value}</text>"
    )


def _curve(
    series: Series,
    number: int,
    x: Callable[[float], float],
    y: Callable[[float], float],
    unit: Callable[[float], str],
) -> str:
    runs: list[list[str]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if math.isfinite(value):
            runs[-1].append(f"{x(step)},{y(value)}")
        elif runs[-1]:
            runs.append([])
    lines = "".join(f'<polyline points="{" ".join(run)}"/>' for run in runs if len(run) > 1)
    dots = ""
    if len(series.steps) <= 40:
        dots = "".join(
            f'<circle cx="{x(step)}" cy="{y(value)}" r="3"><title>{escape(series.label)}, step {short(step)}: '
            f"{unit(value)}</title></circle>"
            for step, value in zip(series.steps, series.values, strict=True)
            if math.isfinite(value)
        )
    return f'<g class="curve s{number % LINES}">{lines}{dots}</g>'


def _legend(series: Series, number: int, unit: Callable[[float], str]) -> str:
    swatch = (
        f'<svg class="swatch curve s{number % LINES}" viewBox="0 0 24 8" aria-hidden="true">'
        '<polyline points="1,4 23,4"/></svg>'
    )
    return f"<li>{swatch}{escape(series.label)} <b>{unit(_last_finite(series.values))}</b></li>"


def _last_finite(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)
