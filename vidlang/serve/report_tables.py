"""The numbers of a report: headline cards, the table of results, and facts about the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from vidlang.serve.report_figures import percent, short

_WAYS = {"t2v": "text to video", "v2t": "video to text"}
_SIZES = ("videos", "texts", "missing", "count")
_HEADLINE = 4


def arrange(metrics: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """(columns of the table, facts beside them) from the contents of metrics.json; `chance` is the last column."""
    nested = any(isinstance(value, Mapping) for value in metrics.values())
    source = metrics if nested else {"result": metrics}
    columns: dict[str, dict[str, float]] = {}
    facts: dict[str, str] = {}
    for name, value in source.items():
        if isinstance(value, Mapping):
            columns[name] = {}
            for key, number in _flat(value):
                if isinstance(number, int | float) and not isinstance(number, bool):
                    columns[name][key] = float(number)
                else:
                    facts[key] = str(number)
        else:
            facts[name] = short(value) if isinstance(value, float) else str(value)
    # A protocol that knows its chance gives it beside its result: it belongs into the column of chances.
    chance = columns.pop("chance", {})
    for column in columns.values():
        for key in [key for key in column if re.search(r"(^|/)chance(_|$)", key)]:
            chance.setdefault(re.sub(r"(^|/)chance(_|$)", r"\1accuracy\2", key), column.pop(key))
    return {**columns, **({"chance": chance} if chance else {})}, facts


def is_share(name: str) -> bool:
    """Whether a metric lies from 0 to 1 and is shown as percent."""
    last = name.rpartition("/")[2]
    found = re.fullmatch(
        r"(cosine_)?([tv]2[tv]_)?(r\d+|map|ndcg)|listed|.*_(top\d+|mean_class)|exact|order|parsed", last
    )
    return bool(found) or last.startswith(("accuracy", "chance"))


def label_of(name: str) -> str:
    """A metric's name in words: val/t2v_r1 -> Text to video, recall at 1."""
    last = name.rpartition("/")[2]
    before, last = ("by cosine alone, ", last[7:]) if last.startswith("cosine_") else ("", last)
    way, rest = before, last
    if last[:4] in ("t2v_", "v2t_"):
        way, rest = f"{before}{_WAYS[last[:3]]}, ", last[4:]
    if re.fullmatch(r"r\d+", rest):
        rest = f"recall at {rest[1:]}"
    rest = {"map": "mAP", "ndcg": "nDCG"}.get(rest, rest)
    text = f"{way}{rest.replace('_', ' ')}"
    return text[:1].upper() + text[1:]


def cards_html(columns: Mapping[str, Mapping[str, float]]) -> str:
    """The first column's recalls at 1 and 5 and accuracies, each with the other columns under it."""
    main, *others = columns or {"": {}}
    shown = [name for name in columns.get(main, ()) if re.search(r"(t2v_r[15]|v2t_r1|accuracy)$", name)]
    shown = shown[:_HEADLINE]
    labels = [label_of(name) for name in shown]
    cards = []
    for name, label in zip(shown, labels, strict=True):
        place = name.rpartition("/")[0]
        # Recalls of one evaluation need no name; an accuracy says nothing without its task.
        if place and (labels.count(label) > 1 or name.endswith("accuracy")):
            label = f"{label} ({place})"
        beside = [f"{other} {_number(name, columns[other][name])}" for other in others if name in columns[other]]
        small = " · ".join(escape(text).replace(" ", "\u00a0") for text in beside)
        cards.append(f"<li>{escape(label)}<b>{_number(name, columns[main][name])}</b><small>{small}</small></li>")
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def results_html(columns: Mapping[str, Mapping[str, float]], facts: Mapping[str, str]) -> str:
    """All numbers, one group of rows for each evaluation, and the facts."""
    if not any(columns.values()):
        return '<h2>All results</h2>\n<p class="note">No result was recorded: metrics.json holds no number.</p>'
    listed = "".join(f"<div><dt>{escape(label_of(k))}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<h2>All results</h2>\n{table_html(columns)}" + (f'\n<dl class="facts">{listed}</dl>' if listed else "")


def table_html(columns: Mapping[str, Mapping[str, float]], *, capitalize: bool = True) -> str:
    """A table with a column for each of `columns` and a row for each number in any of them.

    capitalize: whether their names are words, and not names of folders.
    """
    names = dict.fromkeys(name for column in columns.values() for name in column)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    head = "".join(
        f'<th scope="col">{escape(column.capitalize() if capitalize else column)}</th>' for column in columns
    )
    bodies = "".join(_group(place, members, columns) for place, members in groups.items())
    return f'<div class="table"><table><thead><tr><th scope="col">Metric</th>{head}</tr></thead>{bodies}</table></div>'


def _group(place: str, names: list[str], columns: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of one evaluation under its name, with the sizes of its set beside the name."""
    main = next(iter(columns.values()))
    sizes = [name for name in names if name.rpartition("/")[2] in _SIZES]
    about = ", ".join(f"{_number(name, main.get(name))} {name.rpartition('/')[2]}" for name in sizes)
    title = " – ".join(escape(part) for part in (place, about) if part)
    rows = [f'<tr><th scope="colgroup" colspan="{len(columns) + 1}">{title}</th></tr>'] if title else []
    for name in names:
        if name not in sizes:
            cells = "".join(f"<td>{_number(name, column.get(name))}</td>" for column in columns.values())
            rows.append(f'<tr><th scope="row">{escape(label_of(name))}</th>{cells}</tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _number(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–" if value is None else "not finite"
    if is_share(name):
        return percent(value)
    if name.endswith("_rank"):
        return f"{value:,.1f}"
    return f"{value:,.0f}" if value == int(value) else short(value)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Names joined by '/' and their values, in order."""
    found: list[tuple[str, Any]] = []
    for name, value in nested.items():
        found.extend(_flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)])
    return found
