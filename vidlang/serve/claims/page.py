"""The report of the claims as one self-contained page: verdicts first, then each claim, its figures and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vidlang.serve.claims.verdicts import BEYOND, HELD, NOT_HELD, UNDECIDED
from vidlang.serve.report import page_html
from vidlang.serve.report_figures import percent, short

MARKS = {HELD: "\u2713 held", NOT_HELD: "\u2717 not held", UNDECIDED: "? undecided"}
QUICK = (
    "This is a quick run: fewer steps and seeds than the claims need. It shows that everything works and which way "
    "figures lean; it is no test of the claims."
)
SIGNS = {"times": "\u00d7"}
WIDTH, HEIGHT, EDGE = 380, 56, 24


def render(report: Mapping[str, Any]) -> str:
    """The page as text. The same inputs give the same bytes."""
    claims = report["claims"]
    seeds = len(report["seeds"])
    lead = (
        f"{len(claims)} claims of five papers, each tested in small: trainings on the embedded corpus, "
        f"{seeds} seed{'s' * (seeds != 1)}, one rule that was set before."
    )
    quick = f'<p class="note"><b>Quick.</b> {escape(QUICK)}</p>' if report["quick"] else ""
    parts = [quick, _cards(claims), _overview(claims), *map(_claim, claims), _about(report)]
    title = "The papers\u2019 claims, tested in small" + (" (quick)" if report["quick"] else "")
    footer = "Small models on small videos say whether a method works at all, not how well it does at full size."
    return page_html(title, lead, [part for part in parts if part], footer=footer)


def _cards(claims: Sequence[Mapping[str, Any]]) -> str:
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in MARKS}
    cards = [f"<li>{escape(verdict.capitalize())}<b>{count}</b></li>" for verdict, count in counts.items()]
    return f'<ul class="cards">{"".join(cards)}</ul>'


def _overview(claims: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f'<tr><th scope="row">{claim["number"]}. {escape(claim["statement"])}<br/><small>{escape(claim["source"])}'
        f"</small></th><td>{MARKS[claim['verdict']]}</td></tr>"
        for claim in claims
    ]
    head = '<tr><th scope="col">Claim</th><th scope="col">Verdict</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Verdicts</h2>\n<div class="table">{table}</div>'


def _claim(claim: Mapping[str, Any]) -> str:
    style = ' class="found"' if claim["verdict"] == HELD else ""
    parts = "".join(map(_part, claim["parts"]))
    return (
        f'<h2>{claim["number"]}. {escape(claim["statement"])}</h2>\n<section class="row">'
        f"<p{style}>{MARKS[claim['verdict']]}</p>"
        f"<p>{escape(claim['source'])}. Test: {escape(claim['test'])}</p>"
        f'<div class="charts">{parts}</div>{_trainings(claim["trainings"])}</section>'
    )


def _part(part: Mapping[str, Any]) -> str:
    """What was compared, its figures with all their values, and where the tested one lies."""
    rows = "".join(
        f'<tr><th scope="row">{escape(figure["name"])}</th><td>{_spread(figure)}</td>'
        f"<td>{', '.join(_number(value, figure['unit']) for value in figure['values'])}</td></tr>"
        for figure in part["figures"]
    )
    tested, bound, title = part["tested"], part["bound"], part["what"][:1].upper() + part["what"][1:]
    said = f"{tested['name']}: {_spread(tested)}, must be above {_number(bound, tested['unit'])}"
    return (
        f'<figure class="chart"><h3>{escape(title)}: {MARKS[part["verdict"]]}</h3>'
        f'<table><thead><tr><th scope="col"></th><th scope="col">Mean</th><th scope="col">Each seed</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{_interval(tested, bound)}<figcaption>{escape(said)}</figcaption></figure>"
    )


def _interval(tested: Mapping[str, Any], bound: float) -> str:
    """The mean and as many standard errors around it as the rule asks for, beside the bound; a dot for each seed."""
    error = tested["standard_error"]
    reach = 0.0 if error is None else BEYOND * error
    low, high = tested["mean"] - reach, tested["mean"] + reach
    marks = [low, high, bound, *tested["values"]]
    least, most = min(marks), max(marks)
    room = most - least or abs(most) or 1.0

    def x(value: float) -> float:
        return round(EDGE + (value - least) / room * (WIDTH - 2 * EDGE), 1)

    middle = HEIGHT / 2 - 6
    dots = "".join(f'<circle cx="{x(value)}" cy="{middle}" r="3"/>' for value in tested["values"])
    label = f"{tested['name']}: mean {_number(tested['mean'], tested['unit'])}, bound {_number(bound, tested['unit'])}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<line class="reference" x1="{x(bound)}" x2="{x(bound)}" y1="4" y2="{HEIGHT - 20}"/>'
        f'<text x="{x(bound)}" y="{HEIGHT - 6}" text-anchor="middle">{_number(bound, tested["unit"])}</text>'
        f'<g class="curve s0"><polyline points="{x(low)},{middle} {x(high)},{middle}"/>'
        f'<polyline points="{x(tested["mean"])},{middle - 8} {x(tested["mean"])},{middle + 8}"/>{dots}</g></svg>'
    )


def _trainings(trainings: Sequence[Mapping[str, Any]]) -> str:
    if not trainings:
        return ""
    listed = ", ".join(
        f"{each['name']} (seed {each['seed']}, {each['duration']}, runs/{each['run']}"
        + (f", {each['seconds']:.0f} s)" if each["seconds"] is not None else ")")
        for each in trainings
    )
    return f'<p class="note">Trainings: {escape(listed)}.</p>'


def _about(report: Mapping[str, Any]) -> str:
    facts = {**report["machine"], "started": report["started"], "minutes": f"{report['minutes']:.1f}"}
    facts |= {name.replace("_", " "): str(value) for name, value in report["scale"].items()}
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f'<h2>Rule and machine</h2>\n<p>{escape(report["rule"])}</p>\n<dl class="facts">{listed}</dl>'


def _spread(figure: Mapping[str, Any]) -> str:
    """The mean, and the standard deviation over seeds where there is one."""
    mean, spread = _number(figure["mean"], figure["unit"]), figure["spread"]
    if figure["counted"]:
        return mean
    return f"{mean} \u00b1 {_number(spread, figure['unit'])}" if spread is not None else f"{mean}, one seed"


def _number(value: float, unit: str) -> str:
    if unit == "share":
        return percent(value)
    return f"{short(value)}\u00a0{SIGNS.get(unit, unit)}"
