"""The sections of the page about a run: what its stages cost, where its time went, how each went, a sweep of widths.

All functions here are pure: files are read in `run_report`, numbers are counted in `stage_costs`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vidlang.core.metrics import format_seconds
from vidlang.cost.table import COUNTS
from vidlang.serve.dial_figures import Pruned
from vidlang.serve.gallery import shrink
from vidlang.serve.png import encode_png
from vidlang.serve.report import charts_html
from vidlang.serve.report_figures import percent
from vidlang.serve.report_tables import table_html
from vidlang.serve.stage_costs import COUNTED, StageCost
from vidlang.serve.sweep import Point, pick_metrics, tables
from vidlang.serve.sweep_figure import sweep_figure
from vidlang.train.goodput import TRAINING, Goodput

# Pixels of a strip of frames; larger ones make a page heavy.
STRIP_HEIGHT = 128
_HEADS = {"svitt": "GFLOP svitt, video encoder", "true": "GFLOP true, whole model"}
_ABOUT_COSTS = (
    "One clip forward, as a step of the stage computes it, beside the same clip with all dials off. svitt is SViTT’s "
    "formula for the video encoder, true is counted from the program of the whole model, its texts included."
)


@dataclass(frozen=True)
class StageReport:
    """What is known of one stage.

    state: how far it is, in words. history: its records, empty where it has not begun. results: columns of metrics, as
    `report_tables.arrange` gives them. pruned: a clip under the stage's dials; no_picture: why there is none although
    they prune.
    """

    name: str
    state: str
    cost: StageCost
    history: Sequence[Mapping[str, float]] = ()
    results: Mapping[str, Mapping[str, float]] | None = None
    pruned: Pruned | None = None
    no_picture: str = ""


def costs_html(costs: Sequence[StageCost]) -> str:
    """A line for each stage: its dials, its tokens, its operations, and their share of those with all dials off."""
    heads = "".join(f'<th scope="colgroup" colspan="3">{escape(_HEADS[name])}</th>' for name in COUNTED)
    under = '<th scope="col">own</th><th scope="col">all off</th><th scope="col">share</th>' * len(COUNTED)
    rows = "".join(
        f'<tr><th scope="row">{escape(cost.stage)}<small>{escape(cost.dials)}</small></th><td>{cost.frames}</td>'
        f"<td>{_tokens(cost)}</td>{''.join(_operations(cost, name) for name in COUNTED)}</tr>"
        for cost in costs
    )
    reasons = [f"{cost.stage}: {reason}" for cost in costs for reason in cost.reasons]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in (_ABOUT_COSTS, *reasons))
    return (
        '<h2>What a clip costs</h2>\n<div class="table costs"><table><thead><tr><th scope="col" rowspan="2">Stage</th>'
        f'<th scope="col" rowspan="2">frames</th><th scope="col" rowspan="2">tokens, first to last layer</th>{heads}'
        f"</tr><tr>{under}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )


def _tokens(cost: StageCost) -> str:
    if cost.tokens is None:
        return "–"
    first, last = cost.tokens
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _operations(cost: StageCost, count: str) -> str:
    """Three cells: own, all off, and the share with a bar as long."""
    numbers = "".join(
        f"<td>{found[count] / 1e9:.4g}</td>" if count in found else "<td>–</td>" for found in (cost.own, cost.off)
    )
    share = cost.share(count)
    return f"{numbers}<td>–</td>" if share is None else f"{numbers}<td>{_barred(share)}</td>"


def _barred(share: float) -> str:
    """A share in figures above a bar as long."""
    return (
        f'{percent(share)}<svg class="bar" viewBox="0 0 100 8" aria-hidden="true"><rect class="whole" width="100" '
        f'height="8"/><rect class="part" width="{min(100.0, 100 * share):.1f}" height="8"/></svg>'
    )


def time_html(goodput: Goodput) -> str:
    """Where the wall time of a run went, training first; nothing where no run has begun."""
    if not goodput.wall:
        return ""
    spans = [(TRAINING, goodput.seconds.get(TRAINING, 0.0)), *goodput.lost()]
    rows = "".join(
        f'<tr><th scope="row">{escape(what)}</th><td>{format_seconds(took)}</td>'
        f"<td>{_barred(took / goodput.wall)}</td></tr>"
        for what, took in spans
    )
    counted = ", ".join(goodput.counts())
    note = f"Of {format_seconds(goodput.wall)} since the first start{f'; {counted}' if counted else ''}."
    return (
        '<h2>Where the time went</h2>\n<div class="table costs"><table><thead><tr><th scope="col">What</th>'
        f'<th scope="col">time</th><th scope="col">share</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="note">{escape(note)}</p>'
    )


def stage_html(stage: StageReport) -> str:
    """How a stage went: curves, evaluations, and what its pruning leaves of a clip."""
    parts = [f'<h2>{escape(stage.name)}</h2>\n<p class="lead">{escape(stage.state)}</p>']
    if stage.history:
        results = stage.results or {}
        parts.append(charts_html(stage.history, results.get("chance", {})))
        parts.append("<h3>Evaluations</h3>")
        if any(results.values()):
            parts.append(table_html(results))
        else:
            parts.append('<p class="note">Nothing was evaluated yet.</p>')
    if stage.pruned is not None:
        parts.append(_pruned_html(stage.pruned))
    elif stage.no_picture:
        parts.append(f'<p class="note">What pruning leaves cannot be shown: {escape(stage.no_picture)}</p>')
    return "\n".join(parts)


def _pruned_html(pruned: Pruned) -> str:
    picture = shrink(pruned.picture, STRIP_HEIGHT * len(pruned.strips))
    height, width, _ = picture.shape
    data = base64.b64encode(encode_png(picture)).decode()
    rows = "".join(f"<li>{escape(strip)}</li>" for strip in pruned.strips)
    return (
        '<figure class="pruned"><h3>What pruning leaves of a held-out clip</h3><img alt="Frames of a clip, and below '
        f'them the same with pruned tokens pale" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        f'<figcaption class="note">From the top:<ol>{rows}</ol></figcaption></figure>'
    )


def sweep_html(points: Sequence[Point]) -> str:
    """Table and picture of one checkpoint at several widths; nothing where there are no points."""
    if not points:
        return ""
    metrics = pick_metrics(points)
    parts = ["<h2>One model at several widths</h2>"]
    # Operations as counted from the program, or else by the first convention that could count them.
    counted = [name for name in reversed(COUNTS) if all(name in point.flops for point in points)]
    if counted:
        # As an image, a picture keeps its own colours, in the dark too.
        data = base64.b64encode(sweep_figure(points, metrics, counted[0]).encode()).decode()
        alt = f"{', '.join(metrics)} over the operations of a clip"
        parts.append(f'<p><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}"></p>')
    for head, *lines in tables(points, metrics):
        heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
        rows = "".join(
            f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in line[1:])}</tr>'
            for line in lines
        )
        parts.append(f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>')
    return "\n".join(parts)
