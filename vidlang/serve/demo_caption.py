"""The demo's second half from start to end: train a captioner on the demo's encoder, and show what it says."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import to_dict
from vidlang.datasets.synthetic import parse_events
from vidlang.serve.captions import Captioner
from vidlang.serve.gallery import film_strip
from vidlang.serve.png import encode_png
from vidlang.serve.report import curves_html, history_of, page_html, write_page
from vidlang.serve.report_tables import arrange, cards_html, results_html
from vidlang.serve.search import clip_frames
from vidlang.train import build
from vidlang.train.recipe import read_recipe
from vidlang.train.run_files import METRICS, write_json
from vidlang.train.stages import train

GALLERY_ROWS = 8
BLIND = "blind_"


@dataclass(frozen=True)
class Said:
    """A clip of an evaluation: a strip of its frames, what was said of it, what is so, and whether these agree."""

    picture_HWC: np.ndarray
    said: str
    told: str
    right: bool


def run_demo_caption(config: Any, workdir: str | Path, encoder: str | Path) -> dict[str, Any]:
    """Trains `config` in `workdir` (or goes on) from the encoder of that run, writes metrics.json and report.html."""
    workdir, plain = Path(workdir), to_dict(config)
    *before, last = plain["stages"]
    plain = {**plain, "stages": (*before, {**last, "init_from": ("before", str(encoder))})}
    metrics = arranged(train(plain, workdir))
    write_json(workdir / METRICS, metrics)
    write_demo_report(workdir, metrics, gallery(workdir, plain))
    return metrics


def arranged(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Columns of a table: the captioner, the same with other videos, and chance."""
    columns: dict[str, dict[str, float]] = {"captioner": {}, "blind": {}, "chance": {}}
    for name, value in metrics.items():
        prefix, _, last = name.rpartition("/")
        if last.startswith(BLIND):
            columns["blind"][f"{prefix}/{last.removeprefix(BLIND)}"] = value
        elif last == "chance" or last.startswith("chance_"):
            columns["chance"][f"{prefix}/{last.replace('chance', 'accuracy')}"] = value
        elif prefix:
            columns["captioner"][name] = value
    return columns


def gallery(workdir: Path, config: Any, count: int = GALLERY_ROWS, seed: int = 0) -> list[Said]:
    """What is said of clips drawn at random from the first evaluation."""
    evaluation = read_recipe(config).stages[-1].evals[0]
    table = build.table(evaluation.data, "data of the gallery")
    rows = np.sort(np.random.default_rng(seed).choice(len(table), size=min(count, len(table)), replace=False))
    chosen = table.select(rows)
    speaker = Captioner(workdir, decoding=evaluation.options.get("decoding"), batch_size=count)
    found = []
    for each in speaker(chosen):
        told = chosen.cell(each.row, "texts")
        events = parse_events(each.caption)
        right = events is not None and events in [parse_events(text) for text in told]
        picture = film_strip(clip_frames(chosen, each.row, count=4, height=96), frames=4)
        found.append(Said(picture, each.caption, told[0], right))
    return found


def write_demo_report(workdir: Path, metrics: Mapping[str, Any], shown: Sequence[Said]) -> None:
    """report.html in the run's folder."""
    columns, facts = arrange(metrics)
    sections = [
        cards_html(columns),
        gallery_html(shown),
        curves_html(history_of(workdir), columns.get("chance", {})),
        results_html(columns, facts),
    ]
    lead = "What a small captioner says about videos, and pairs of events, that it was never trained on."
    footer = "The blind model is the same one, shown another video than the one that its words are held against."
    write_page(workdir / "report.html", page_html("vidlang demo: captions", lead, sections, footer=footer))


def gallery_html(shown: Sequence[Said]) -> str:
    """Clips with what was said of them."""
    about = "Held-out clips drawn at random, not chosen: four frames each, what the model says of it, and what is so."
    items = "\n".join(_item_html(each) for each in shown)
    return f'<h2>What the model says</h2>\n<p class="lead">{about}</p>\n<ol class="results">{items}</ol>'


def _item_html(each: Said) -> str:
    data = base64.b64encode(encode_png(each.picture_HWC)).decode()
    height, width, _ = each.picture_HWC.shape
    mark = "\u2713 all of it right" if each.right else "\u2717 not all right"
    style = ' class="right"' if each.right else ""
    return (
        f'<li{style}><img alt="Frames of a video: {escape(each.told)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"><div class="place"><span>{mark}</span></div>'
        f"<div>said: {escape(each.said)}</div><div>true: {escape(each.told)}</div></li>"
    )


def closing_words(metrics: Mapping[str, Mapping[str, float]], workdir: str | Path) -> str:
    """What to look at, and what to try next."""
    own, blind, chance = (metrics[name] for name in ("captioner", "blind", "chance"))
    return f"""
Captions of {own["val/count"]:.0f} videos, and pairs of events, never trained on:
  which event came first, as told        {own["val/order"]:6.1%}   (blind {blind["val/order"]:.1%})
  every word about both events right     {own["val/exact"]:6.1%}   (blind {blind["val/exact"]:.1%})
  CIDEr                                  {own["val/cider"]:6.2f}   (blind {blind["val/cider"]:.2f})
  answers chosen by likelihood           {own["choice/accuracy"]:6.1%}   (chance {chance["choice/accuracy"]:.1%})

Look at {workdir}/report.html, and let it say something about a video of yours:
  python -m launch.caption --run={workdir} --video=YOUR_VIDEO.mp4"""
