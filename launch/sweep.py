"""Runs a run's evaluations at several widths of its one model: accuracy against operations, as table, JSON and picture.

    python -m launch.sweep --workdir=runs/dials
    python -m launch.sweep --workdir=runs/dials --presets=d-768,d-dec,d-192 --evals=dense_val --metrics=dense_val/t2v_r5

The model is the newest checkpoint of the last stage, trained with the dial widths (docs/dials.md); widths that it was
not trained at give what chance gives. Writes sweep.json and sweep.svg into the run's folder, or into --output.
"""

from pathlib import Path

import jax
from absl import flags

from launch import cli
from vidlang.cost.table import COUNTS
from vidlang.serve.sweep import PRESETS, pick_metrics, render, sweep, to_json
from vidlang.serve.sweep_figure import sweep_figure

WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "Folder of the run.", required=True)
WIDTHS = flags.DEFINE_list("presets", list(PRESETS), "Presets of widths, as in d-768,d-dec.")
EVALS = flags.DEFINE_list("evals", None, "Prefixes of the evaluations to run. Default: all of the stage.")
METRICS = flags.DEFINE_list(
    "metrics", None, "Metrics to show, as in val/t2v_r1. Default: the first of each evaluation."
)
FLOPS = flags.DEFINE_enum("flops", "true", list(COUNTS), "How the operations of the picture are counted.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
OUTPUT = flags.DEFINE(cli.PATH, "output", None, "Folder for sweep.json and sweep.svg. Default: the run's.")


def main(argv: list[str]) -> None:
    """Sweeps, writes, and prints the table."""
    del argv
    folder, writes = Path(OUTPUT.value or WORKDIR.value), jax.process_index() == 0
    points = []
    for point in sweep(WORKDIR.value, WIDTHS.value, prefixes=EVALS.value or (), step=STEP.value):
        points.append(point)
        if writes:  # at once: what took hours is kept when a later preset fails
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sweep.json").write_text(to_json(points), encoding="utf-8")
    metrics = pick_metrics(points, METRICS.value or ())
    if writes:
        (folder / "sweep.svg").write_text(sweep_figure(points, metrics, FLOPS.value), encoding="utf-8")
    print(render(points, metrics))


if __name__ == "__main__":
    cli.run(main)
