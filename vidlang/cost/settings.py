"""Settings of the dials to compare: those that the papers publish, for a stack of any depth, applied to a stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.cost.stack import StackShape, tokens_per_layer
from vidlang.models import video
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import Dials
from vidlang.ops.masking import keep
from vidlang.ops.tubelets import Size3
from vidlang.train import build, sources
from vidlang.train.recipe import Stage

# Of a pixel.
CHANNELS = 3
LAST_LAYERS = 4
EDGES = ((1, 3, 56), (1, 5, 56))
KEEP = 0.7


@dataclass(frozen=True)
class Setting:
    """One row of a plan: what is turned, and whether only the last layers of the video encoder are trained.

    model: keys of the model's section, where they are others.
    """

    name: str
    dials: Mapping[str, Any] = field(default_factory=dict)
    last_layers: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)


def settings(stage: Stage) -> list[Setting]:
    """All off; each dial alone; the published mixtures; the last layers alone; and what the stage itself says.

    Of a captioner, also what it costs to train what it has frozen.
    """
    spec = encoder(stage)[1]
    layers = spec.layers
    # SViTT prunes after layers 3, 6 and 9 of 12, counted from 0.
    pruned = {"keep": tuple((layer, KEEP) for layer in sorted({layers * part // 4 for part in (1, 2, 3)}))}
    edges = {f"edges {given}": {"edges": _edges(*given)} for given in EDGES}
    # Where attention runs along rows of a grid, a mask must leave whole rows.
    kind = {} if spec.layout == "joint" else {"mask_kind": "tube"}
    last = min(LAST_LAYERS, max(1, layers // 3))
    found = [
        Setting("off"),
        *(Setting(f"mask {share}", {"mask": share, **kind}) for share in (0.5, 0.75, 0.9)),
        Setting("widths d-dec", {"widths": "d-dec"}),
        Setting("widths half", {"widths": "d-384"}),
        *(Setting(name, dials) for name, dials in edges.items()),
        Setting(f"keep {KEEP} x {len(pruned['keep'])}", pruned),
        *(Setting(f"{name} + keep {KEEP}", {**dials, **pruned}) for name, dials in edges.items()),
        Setting("mask 0.75 + d-dec", {"mask": 0.75, "widths": "d-dec", **kind}),
        Setting(f"last {last} layers", {}, last),
        Setting(f"mask 0.75 + last {last} layers", {"mask": 0.75, **kind}, last),
    ]
    if build.dials(stage) not in (Dials(), *(call(Dials, each.dials, what="dials") for each in found)):
        found.insert(1, Setting("the stage's own", stage.dials))
    return found + [
        Setting(f"{name} trained too", stage.dials, model={f"train_{name}": True})
        for name in ("video", "language")
        if build.named(stage.model, "model")[0] == "captioner" and not stage.model.get(f"train_{name}", False)
    ]


def apply(stage: Stage, setting: Setting, *, frames: int | None = None, batch_size: int | None = None) -> Stage:
    """The stage with these dials, and with other clips or batches where they are given."""
    changes: dict[str, Any] = {"dials": dict(setting.dials)}
    if setting.model:
        changes["model"] = {**stage.model, **setting.model}
    if batch_size is not None:
        changes["batch_size"] = batch_size
    if frames is not None:
        changes |= _with_frames(stage, frames)
    if setting.last_layers:
        section, spec, path = encoder(stage)
        transformer = {**section["transformer"], "frozen_layers": spec.layers - setting.last_layers}
        changes["model"] = _with(stage.model, path, {**section, "transformer": transformer})
    return dataclasses.replace(stage, **changes)


def _with_frames(stage: Stage, frames: int) -> dict[str, Any]:
    """What changes where clips have so many frames: of a mixture, those of the sources that have the most."""
    changes: dict[str, Any] = {"clip": {**stage.clip, "frames": frames}}
    if sources.is_mixture(stage):
        counts = [spec.frames for spec in sources.specs(stage)]
        changed = tuple(
            {**source, "clip": {**source.get("clip", {}), "frames": frames if count == max(counts) else count}}
            for source, count in zip(stage.data["sources"], counts, strict=True)
        )
        changes["data"] = {**stage.data, "sources": changed}
    return changes


def encoder(stage: Stage) -> tuple[dict[str, Any], TransformerSpec, tuple[str, ...]]:
    """(the section of the stage's video encoder, its transformer, the keys that lead to the section)."""
    name, options = build.named(stage.model, "model")
    path: tuple[str, ...] = () if name == "video" else ("video",)
    section = options if name == "video" else options.get("video")
    if not isinstance(section, Mapping) or "transformer" not in section:
        raise ValueError(
            f"the model {name!r} of stage {stage.name!r} has no section 'video' with a transformer, so there are no "
            "dials to compare; plan a stage whose model has a video encoder"
        )
    spec: TransformerSpec = call(TransformerSpec, section["transformer"], what="video.transformer")
    return dict(section), spec, path


def has_stack(stage: Stage) -> bool:
    """Whether the stage's model has a video encoder of one grid of tokens, for which the formulas are."""
    name, options = build.named(stage.model, "model")
    section = options if name == "video" else options.get("video")
    if not isinstance(section, Mapping) or "transformer" not in section:
        return False
    return not section.get("views")


def video_stack(stage: Stage) -> StackShape:
    """What the video encoder of the stage computes for one clip under the stage's dials; of a mixture, its largest."""
    section, spec, _ = encoder(stage)
    model = call(video.Model, section, what="model.video")
    clip = max(sources.specs(stage), key=lambda clip: clip.frames * clip.size**2)
    dials = build.dials(stage)
    grid = video.grid_of(model, (clip.frames, clip.size, clip.size))
    if grid is None:
        raise ValueError("the papers' formulas are for one grid of tokens, and video.views cuts clips into several")
    # Widths that are drawn in each step cost at most what the full one does.
    static = isinstance(dials.widths, str | tuple)
    widths = spec.widths(dials.widths) if static else spec.schedule or (spec.width,) * spec.layers
    edges = dials.edges
    return StackShape(
        width=spec.width,
        mlp=spec.mlp,
        widths=widths,
        grid=grid,
        tokens=tokens_per_layer(_kept(grid, dials), spec.layers, dials.keep),
        patch=model.tubelet[0] * model.tubelet[1] * model.tubelet[2] * CHANNELS,
        cls=model.has_cls,
        layout=spec.layout,
        edges=None if edges is None else (edges.local, edges.random, edges.block),
    )


def _kept(grid: Size3, dials: Dials) -> int:
    """How many tokens the mask leaves."""
    whole = jax.ShapeDtypeStruct((1, math.prod(grid), 1), jnp.float32)
    if not dials.mask:
        return whole.shape[1]
    key = jax.eval_shape(lambda: jax.random.key(0))
    kept = jax.eval_shape(lambda key, x_BND: keep(key, x_BND, grid, dials.mask, dials.mask_kind)[1], key, whole)
    return int(kept.shape[1])


def _edges(local: int, random: int, block: int) -> dict[str, int]:
    return {"local": local, "random": random, "block": block}


def _with(model: Mapping[str, Any], path: tuple[str, ...], section: Mapping[str, Any]) -> dict[str, Any]:
    """The model's section with the video encoder's replaced."""
    return {**model, path[0]: section} if path else {"name": model["name"], **section}
