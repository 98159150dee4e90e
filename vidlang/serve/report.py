"""One self-contained HTML page about a run: results, curves, and what the model finds for a few sentences.

`render` is a pure function of its inputs; `write_report` reads a run's files and writes the page beside them. The page
loads nothing: pictures and curves are inside it, and its security policy forbids everything else.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vidlang.core.metrics import read_history
from vidlang.serve.gallery import GalleryItem, GalleryRow, film_strip
from vidlang.serve.png import encode_png
from vidlang.serve.report_figures import Series, line_chart
from vidlang.serve.report_style import CSS
from vidlang.serve.report_tables import arrange, cards_html, is_share, label_of, results_html
from vidlang.train.saved import stage_folders

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NO_EVALUATION = '<p class="note">No evaluation was logged during training, so there is no curve of recalls.</p>'
_FIRST_CHARTS = ("Loss", "Learning rate")
# Which shares have a chart together, by how their names begin; chances and sizes have none.
_SHARE_CHARTS = {
    "t2v_": "Text to video",
    "v2t_": "Video to text",
    "cosine_t2v_": "Text to video by cosine alone",
    "cosine_v2t_": "Video to text by cosine alone",
    "accuracy": "Accuracy",
    "map$|ndcg$": "Both ways",
    ".*_(top|mean_class)": "Classes",
}


def write_report(
    run_dir: str | os.PathLike[str], *, title: str | None = None, gallery: Sequence[GalleryRow] = ()
) -> Path:
    """Writes `report.html` into `run_dir` from its metrics.json and metrics.jsonl, and returns its path.

    metrics.json holds the columns of the table of results, {"trained": {name: number}, "untrained": {...}, "chance":
    {...}}; a number or a word beside the columns is listed as a fact. A flat {name: number} is one column.
    metrics.jsonl, here or in the folders of the run's stages, may be missing; see `history_of`.
    """
    run_dir = Path(run_dir)
    path = run_dir / "metrics.json"
    if not path.is_file():
        raise ValueError(f"a report needs {path}; evaluate the run first, which writes it")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} must hold an object of names and numbers; found {type(metrics).__name__}")
    page = render(title or run_dir.resolve().name, metrics, history_of(run_dir), gallery)
    report = run_dir / "report.html"
    write_page(report, page)
    return report


def history_of(run_dir: Path) -> list[dict[str, float]]:
    """All records {"step": ..., name: number} of a run; the steps of a stage go on counting from those before it."""
    if (run_dir / "metrics.jsonl").is_file():
        return read_history(run_dir / "metrics.jsonl")
    history: list[dict[str, float]] = []
    done = 0.0
    for folder in stage_folders(run_dir):
        records = read_history(folder / "metrics.jsonl")
        history.extend({**record, "step": done + record["step"]} for record in records)
        done += max((record["step"] for record in records), default=0)
    return history


def render(
    title: str,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    gallery: Sequence[GalleryRow],
) -> str:
    """The page as text. The same inputs give the same bytes."""
    columns, facts = arrange(metrics)
    sections = [
        cards_html(columns),
        curves_html(history, columns.get("chance", {})),
        gallery_html(gallery),
        results_html(columns, facts),
    ]
    lead = "What the run reached, how it got there, and what the model finds."
    return page_html(title, lead, sections, footer="Recalls count a tie as a miss.")


def page_html(title: str, lead: str, sections: Sequence[str], *, footer: str = "") -> str:
    """A whole page around its sections; `title`, `lead` and `footer` are plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n' + "\n".join(sections) + f"\n<footer>"
        f"{escape(f'{footer} '.lstrip())}Made by vidlang; this page is one file and loads nothing.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Renamed into place, so that a reader never sees half a page."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def curves_html(history: Sequence[Mapping[str, float]], chance: Mapping[str, float]) -> str:
    """Loss, learning rate and every evaluated recall and accuracy over the steps; a sentence where there is none."""
    return f"<h2>Curves</h2>\n{charts_html(history, chance)}"


def charts_html(history: Sequence[Mapping[str, float]], chance: Mapping[str, float]) -> str:
    """The curves without a heading."""
    groups: dict[str, list[str]] = {}
    # A record with a loss is a step's; what else it has was measured on the step's own batch.
    in_training = {name for record in history if "loss" in record for name in record}
    for name in dict.fromkeys(name for record in history for name in record):
        if group := _chart_of(name):
            groups.setdefault(group + ", in training" * (name in in_training and is_share(name)), []).append(name)
    if not groups:
        text = "No training history was found: metrics.jsonl is missing, empty, or holds no loss and no recall."
        return f'<p class="note">{text}</p>'
    charts = [
        line_chart(
            group,
            [_series(name, history) for name in names],
            share=is_share(names[0]),
            references=_chance_of(names, chance),
        )
        for group, names in sorted(groups.items(), key=lambda item: _chart_order(item[0]))
    ]
    evaluated = any(is_share(name) and name not in in_training for names in groups.values() for name in names)
    missing = "" if evaluated else _NO_EVALUATION
    return f'<div class="charts">{"".join(charts)}</div>{missing}'


def _chart_order(title: str) -> tuple[int, str]:
    return (_FIRST_CHARTS.index(title) if title in _FIRST_CHARTS else len(_FIRST_CHARTS), title)


def _chance_of(names: Sequence[str], chance: Mapping[str, float]) -> list[tuple[str, float]]:
    """The level of chance of a chart's first curve, named where there are several curves."""
    if names[0] not in chance:
        return []
    which = f"chance of {label_of(names[0]).rpartition(', ')[2].lower()}:" if len(names) > 1 else "chance"
    return [(which, chance[names[0]])]


def _chart_of(name: str) -> str | None:
    """Title of the chart that a logged value belongs to, or None: in-batch accuracies, norms and speeds have none."""
    place, _, last = name.rpartition("/")
    if last == "loss":
        return "Loss"
    if last == "learning_rate":
        return "Learning rate"
    if not place or not is_share(name):
        return None
    kind = next((title for pattern, title in _SHARE_CHARTS.items() if re.match(pattern, last)), None)
    return f"{kind} ({place})" if kind else None


def _series(name: str, history: Sequence[Mapping[str, float]]) -> Series:
    records = [record for record in history if name in record and "step" in record]
    place, _, last = name.rpartition("/")
    # Of several losses, the objective says which.
    label = place if place and last == "loss" else label_of(name).rpartition(", ")[2]
    label = label[:1].upper() + label[1:]
    return Series(label, [record["step"] for record in records], [record[name] for record in records])


def gallery_html(gallery: Sequence[GalleryRow]) -> str:
    """Sentences and the videos found for them, as `gallery_rows` draws them; the right one is marked in three ways."""
    if not gallery:
        return '<h2>What the model finds</h2>\n<p class="note">No gallery was made for this run.</p>'
    about = (
        "Sentences drawn at random from the evaluation, not chosen, each with the videos that score highest for it. "
        "A picture shows the first, middle and last frame of a video. The right video has a green frame."
    )
    rows = "\n".join(_row_html(row) for row in gallery)
    return f'<h2>What the model finds</h2>\n<p class="lead">{about}</p>\n{rows}'


def _row_html(row: GalleryRow) -> str:
    found = any(item.correct for item in row.results)
    if row.rank == 1:
        place = "The right video comes first" + (f" among {row.candidates}." if row.candidates else ".")
    elif row.rank is not None:
        place = f"The right video is at place {row.rank}" + (f" of {row.candidates}." if row.candidates else ".")
    else:
        place = "The right video is among them." if found else "The right video is not among them."
    items = [_item_html(item, f"{number}") for number, item in enumerate(row.results, start=1)]
    if row.right is not None:
        items.append(_item_html(row.right, f"{row.rank or '…'}", below=True))
    style = ' class="found"' if row.rank == 1 else ""
    return (
        f'<section class="row"><h3>“{escape(row.query)}”</h3><p{style}>{place}</p>'
        f'<ol class="results">{"".join(items)}</ol></section>'
    )


def _item_html(item: GalleryItem, place: str, *, below: bool = False) -> str:
    picture = film_strip(item.frames_THWC)
    data = base64.b64encode(encode_png(picture)).decode()
    style = " ".join(name for name, on in (("right", item.correct), ("below", below)) if on)
    mark = " ✓ right" if item.correct else ""
    height, width, _ = picture.shape
    return (
        f'<li class="{style}"><img alt="Frames of a video: {escape(item.caption)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"><div class="place"><span>{place}{mark}</span>'
        f"<span>{item.score:.3f}</span></div><div>{escape(item.caption)}</div></li>"
    )
