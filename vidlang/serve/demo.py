"""The demo from start to end: train, evaluate trained and untrained, and show what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlang.evals.metrics import ranking
from vidlang.serve.report import write_report
from vidlang.serve.search import embed_evaluation, gallery
from vidlang.train.evaluate import evaluate
from vidlang.train.run_files import METRICS, write_json
from vidlang.train.stages import train

GALLERY_ROWS = 8


def run_demo(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains `config` in `workdir` (or goes on), writes metrics.json and report.html, and returns the metrics."""
    workdir = Path(workdir)
    train(config, workdir)
    metrics = demo_metrics(evaluate(workdir), evaluate(workdir, untrained=True))
    write_json(workdir / METRICS, metrics)
    clips = embed_evaluation(workdir)
    write_report(workdir, title="vidlang demo", gallery=gallery(clips, count=GALLERY_ROWS, seed=0))
    return metrics


def demo_metrics(trained: Mapping[str, float], untrained: Mapping[str, float]) -> dict[str, Any]:
    """The demo's headline numbers by plain names, and every metric of both models."""
    videos = int(trained["val/videos"])
    chance = {f"val/{way}_{name}": value for way in ("t2v", "v2t") for name, value in ranking.chance(videos).items()}
    return {
        "t2v_r1": trained["val/t2v_r1"],
        "v2t_r1": trained["val/v2t_r1"],
        "order_2afc": trained["order/accuracy"],
        "untrained_t2v_r1": untrained["val/t2v_r1"],
        "untrained_order_2afc": untrained["order/accuracy"],
        "videos": videos,
        "trained": dict(trained),
        "untrained": dict(untrained),
        "chance": chance,
    }


def closing_words(metrics: Mapping[str, Any], workdir: str | Path, config: str) -> str:
    """What to look at, and what to try next."""
    again = f"python -m launch.train --config={config}"
    return f"""
Trained on videos of acting shapes; measured on {metrics["videos"]} videos, and pairs of events, never trained on:
  text to video, right one first   {metrics["t2v_r1"]:6.1%}   (untrained {metrics["untrained_t2v_r1"]:.1%}, chance \
{1 / metrics["videos"]:.1%})
  video to text, right one first   {metrics["v2t_r1"]:6.1%}
  which event came first           {metrics["order_2afc"]:6.1%}   (untrained {metrics["untrained_order_2afc"]:.1%}, \
chance 50%)

Look at {workdir}/report.html (curves, results, what it finds for a sentence) and {workdir}/{METRICS}.

Try next, with .venv/bin/python as python:
  python -m launch.evaluate --workdir={workdir}
  {again} --workdir=runs/masked '--config.stages[0].dials.mask=0.5'     # half the tubelets, faster steps
  python -m launch.precut --input=YOUR_VIDEOS --output=data/yours       # your own videos as a chunk store"""
