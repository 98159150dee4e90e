"""One checkpoint at many widths: how well it does at each preset, and what a clip costs there (AdaVid's Figure 3).

The evaluations of a run's last stage are run again at each preset of widths, in place of their own; everything else of
their dials stays. What a preset costs is one clip of the evaluation through the video encoder, all its views, by both
papers' formulas and as counted from the program (docs/cost.md).

Each preset is a program of its own, compiled once however many evaluations use it, and the clips are decoded anew for
each: with P presets a sweep takes P times as long as `launch.evaluate`, less what narrow encoders save.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from vidlang.core.metrics import format_number
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.cost.flops import CONVENTIONS
from vidlang.cost.settings import encoder, video_stack
from vidlang.cost.stack import StackShape
from vidlang.cost.table import COUNTS
from vidlang.cost.trace import matmul_flops
from vidlang.ops.dials import streams
from vidlang.train import build
from vidlang.train.evaluate import EVERY_DEVICE, restore_model
from vidlang.train.predict import Evaluations, Predict
from vidlang.train.recipe import Evaluation, Recipe, Stage, read_recipe
from vidlang.train.run_files import read_config
from vidlang.train.saved import find_checkpoint, read_note
from vidlang.train.step import with_video

# Those that AdaVid evaluates its model with, about from the dearest to the cheapest; d-inc costs what d-dec does.
PRESETS = ("d-768", "d-dec-high", "d-576", "d-dec", "d-dec-low", "d-inc", "d-384", "d-192")
# Methods that see nothing but clips: what a sweep counts the operations of, where the model has it.
VIDEO_METHODS = ("embed_video", "classify")


@dataclass(frozen=True)
class Point:
    """One evaluation at one preset. flops: of one clip, by each convention that can count it; metrics: by name."""

    preset: str
    widths: tuple[int, ...]
    prefix: str
    flops: dict[str, float]
    metrics: dict[str, float]


def sweep(
    workdir: str | Path,
    presets: Sequence[str] = PRESETS,
    *,
    prefixes: Sequence[str] = (),
    step: int | None = None,
    mesh: Mapping[str, int] = EVERY_DEVICE,
) -> Iterator[Point]:
    """The points of a run's newest checkpoint, or of `step`, each as soon as it is known; `prefixes` choose some."""
    recipe = read_recipe(read_config(workdir))
    folder, newest = find_checkpoint(workdir)
    step = newest if step is None else step
    stage = _chosen(recipe.stages[read_note(folder, newest)["stage"]], prefixes)
    spec = encoder(stage)[1]
    # Before anything is restored: a preset that the model has no widths for ends the sweep now.
    widths = {preset: spec.widths(preset) for preset in presets}
    model, params, _ = restore_model(workdir, step=step, mesh=mesh)
    return _points(recipe, stage, widths, model, params, step, mesh)


def _points(
    recipe: Recipe,
    stage: Stage,
    widths: Mapping[str, tuple[int, ...]],
    model: Any,
    params: Any,
    step: int,
    mesh: Mapping[str, int],
) -> Iterator[Point]:
    devices = make_mesh(mesh)
    predict = Predict(model, devices)
    for preset, widths_L in widths.items():
        at = _at(stage, preset)
        counted = {each.prefix: clip_flops(model, params, at, each) for each in at.evals}
        with use_mesh(devices):
            evaluations = Evaluations(at, predict, recipe.runtime, total=max(step, 1))
            metrics = evaluations.run(evaluations.all(), params, step)
        logging.info("%s: %s", preset, ", ".join(f"{name} {format_number(v)}" for name, v in metrics.items()))
        for prefix, flops in counted.items():
            own = {name: value for name, value in metrics.items() if name.startswith(f"{prefix}/")}
            yield Point(preset, widths_L, prefix, flops, own)


def _chosen(stage: Stage, prefixes: Sequence[str]) -> Stage:
    """The stage with only these evaluations."""
    known = [evaluation.prefix for evaluation in stage.evals]
    if unknown := [prefix for prefix in prefixes if prefix not in known]:
        raise ValueError(
            f"stage {stage.name!r} has no evaluation with the prefix {unknown[0]!r}; it has: "
            f"{', '.join(known) or 'none'}"
        )
    if not stage.evals:
        raise ValueError(f"stage {stage.name!r} has no evals to sweep; name some in its config")
    evals = tuple(evaluation for evaluation in stage.evals if not prefixes or evaluation.prefix in prefixes)
    return dataclasses.replace(stage, evals=evals)


def _at(stage: Stage, preset: str) -> Stage:
    """The stage with its evaluations at these widths."""
    evals = [dataclasses.replace(each, dials={**each.dials, "widths": preset}) for each in stage.evals]
    return dataclasses.replace(stage, evals=tuple(evals))


def clip_flops(model: Any, params: Any, stage: Stage, evaluation: Evaluation) -> dict[str, float]:
    """Operations of one clip of an evaluation, all its views; what a convention cannot count is left out and told."""
    spec = build.eval_spec(stage, evaluation)
    dials = {**stage.dials, "mask": 0.0, **evaluation.dials}
    clip = {**stage.clip, "pairs": "none", **evaluation.clip}
    alone = dataclasses.replace(stage, data=evaluation.data, clip=clip, dials=dials)
    counts: dict[str, Callable[[], float]] = {
        name: functools.partial(_by_formula, convention, alone) for name, convention in CONVENTIONS.items()
    }
    counts["true"] = functools.partial(_by_trace, model, params, stage, evaluation)
    found = {}
    for name, count in counts.items():
        try:
            found[name] = count() * spec.views * spec.crops
        except ValueError as error:
            logging.warning("operations of %s cannot be counted as %s: %s", evaluation.label, name, error)
    return found


def _by_formula(convention: Callable[[StackShape], int], stage: Stage) -> float:
    return float(convention(video_stack(stage)))


def _by_trace(model: Any, params: Any, stage: Stage, evaluation: Evaluation) -> float:
    spec, dials = build.eval_spec(stage, evaluation), build.eval_dials(stage, evaluation)
    method = next((name for name in VIDEO_METHODS if hasattr(model, name)), None)
    if method is None:
        raise ValueError(f"the model has none of the methods {', '.join(VIDEO_METHODS)}")

    def forward(params: Any, arrays: Any) -> Any:
        bound = model.bind({"params": params}, rngs=streams(jax.random.key(0)))
        return getattr(bound, method)(**with_video(arrays), dials=dials)

    clip = {spec.video_field: jax.ShapeDtypeStruct((1, *spec.video_shape), np.uint8)}
    return float(matmul_flops(forward, params, clip))


def pick_metrics(points: Sequence[Point], wanted: Sequence[str] = ()) -> list[str]:
    """Names of metrics to show: those wanted, or the first of each evaluation."""
    known = list(dict.fromkeys(name for point in points for name in point.metrics))
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"there is no metric {unknown[0]!r}; there are: {', '.join(known)}")
    return list(wanted) or list(dict.fromkeys(next(iter(point.metrics)) for point in points))


def render(points: Sequence[Point], metrics: Sequence[str]) -> str:
    """A table for each evaluation that has one of the metrics, a line for each preset."""
    texts = []
    for lines in tables(points, metrics):
        sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ("  ".join([line[0].ljust(sizes[0]), *map(str.rjust, line[1:], sizes[1:])]) for line in lines)
        texts.append("\n".join(rows))
    return "\n\n".join(texts)


def tables(points: Sequence[Point], metrics: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """The cells of these tables, line by line, the first with what the columns are called."""
    found = []
    for prefix in dict.fromkeys(point.prefix for point in points):
        own = [point for point in points if point.prefix == prefix]
        names = [name for name in metrics if name in own[0].metrics]
        if not names:
            continue
        counts = [name for name in COUNTS if name in own[0].flops]
        lines = [("widths", "mean", *(f"GFLOP {name}" for name in counts), *names)]
        for point in own:
            costs = (f"{point.flops[name] / 1e9:.4g}" for name in counts)
            results = (format_number(point.metrics[name]) for name in names)
            lines.append((point.preset, f"{np.mean(point.widths):.4g}", *costs, *results))
        found.append(lines)
    return found


def to_json(points: Sequence[Point]) -> str:
    """All points with all their metrics."""
    return json.dumps([dataclasses.asdict(point) for point in points], indent=2) + "\n"


def read_points(path: str | Path) -> list[Point]:
    """The points that `to_json` wrote into a file."""
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
        return [Point(**{**point, "widths": tuple(point["widths"])}) for point in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not hold the points of a sweep; run launch.sweep again: {error}") from error
