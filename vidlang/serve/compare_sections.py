"""The sections of the page about several runs. All functions here are pure; a run is a column, or a curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vidlang.serve.report_figures import LINES, Series, line_chart, percent, short
from vidlang.serve.report_tables import is_share, label_of, table_html

History = Sequence[Mapping[str, float]]
SHARES = ("waits for data", "MFU", "goodput")
# Values of a config are cut after so many letters; the whole is in the run's own file.
LETTERS = 120
_NOT_THERE = "–"
# What an evaluation says of itself, and no result.
_NO_RESULTS = ("videos", "texts", "missing", "count")


def runs_html(names: Sequence[str], states: Sequence[str], speeds: Sequence[Mapping[str, float]]) -> str:
    """A line for each run: how far it is, and how fast it was."""
    columns = list(dict.fromkeys(name for found in speeds for name in found))
    rows = [
        [name, state, *(_speed(column, found.get(column)) for column in columns)]
        for name, state, found in zip(names, states, speeds, strict=True)
    ]
    note = "Speeds are medians over the steps of the last stage; goodput is the share of the wall time that trained."
    return f'<h2>Runs</h2>\n{_table(["Run", "state", *columns], rows)}<p class="note">{note}</p>'


def _speed(name: str, value: float | None) -> str:
    if value is None:
        return _NOT_THERE
    return percent(value) if name in SHARES else short(value)


def metrics_html(metrics: Mapping[str, Mapping[str, float]], chance: Mapping[str, float]) -> str:
    """The last of each metric of each run."""
    if not any(metrics.values()):
        return '<h2>Last metrics</h2>\n<p class="note">No run has written a metric yet.</p>'
    columns = {**metrics, **({"chance": chance} if chance and "chance" not in metrics else {})}
    return f"<h2>Last metrics</h2>\n{table_html(columns, capitalize=False)}"


def curves_html(histories: Mapping[str, History], chance: Mapping[str, float]) -> str:
    """For the losses, the learning rate and each metric of an evaluation a chart with a curve for each run."""
    charts = [
        line_chart(
            title_of(name),
            [_series(run, name, history) for run, history in histories.items() if any(name in r for r in history)],
            share=is_share(name),
            references=[("chance", chance[name])] if name in chance else [],
            numbers=[i for i, history in enumerate(histories.values()) if any(name in r for r in history)],
        )
        for name in charted(histories.values())
    ]
    if not charts:
        return '<h2>Curves</h2>\n<p class="note">No run has a history yet: metrics.jsonl is missing or empty.</p>'
    many = f" Beyond {LINES} runs, colours come again." if len(histories) > LINES else ""
    note = f'<p class="note">The steps of a stage go on counting from those before it.{many}</p>'
    return f'<h2>Curves</h2>\n<div class="charts">{"".join(charts)}</div>{note}'


def charted(histories: Sequence[History] | Any) -> list[str]:
    """What has a chart, losses first."""
    losses, others = dict[str, None](), dict[str, None]()
    for record in (record for history in histories for record in history):
        for name in record:
            last = name.rpartition("/")[2]
            if last == "loss":
                losses[name] = None
            elif "loss" in record:
                others |= {name: None} if last == "learning_rate" else {}
            elif name != "step" and last not in _NO_RESULTS and not last.startswith("chance"):
                others[name] = None
    first = ["loss"] if "loss" in losses else []
    rate = [name for name in others if name.endswith("learning_rate")]
    return [*first, *(n for n in losses if n != "loss"), *rate, *(n for n in others if n not in rate)]


def title_of(name: str) -> str:
    """A metric's name in words, with the evaluation or objective that it is of."""
    place = name.rpartition("/")[0]
    return f"{label_of(name)} ({place})" if place else label_of(name)


def _series(run: str, name: str, history: History) -> Series:
    records = [record for record in history if name in record]
    return Series(run, [record["step"] for record in records], [record[name] for record in records])


def config_html(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The keys of the configs that are not the same in all runs, by their paths."""
    rows = [[path, *values] for path, values in differences(configs).items()]
    if not rows:
        return '<h2>Configs</h2>\n<p class="note">The configs are the same in every key.</p>'
    keys = sum(len({*config}) for config in configs.values()) // len(configs)
    note = f'<p class="note">Only keys that differ, of about {keys:,}; {_NOT_THERE} where a config has no such key.</p>'
    return f"<h2>Configs</h2>\n{_table(['Key', *configs], rows)}{note}"


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """For each path at which two of the configs differ, the value in each."""
    paths = dict.fromkeys(path for config in configs.values() for path in config)
    found = {path: [_shown(config, path) for config in configs.values()] for path in paths}
    return {path: [_cut(value) for value in values] for path, values in found.items() if len(set(values)) > 1}


def _shown(config: Mapping[str, Any], path: str) -> str:
    return json.dumps(config[path], default=str) if path in config else _NOT_THERE


def _cut(value: str) -> str:
    return value if len(value) <= LETTERS else f"{value[:LETTERS]}…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="table compared">{table}</div>'
