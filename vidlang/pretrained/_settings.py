"""Whether a model's sections are those of the weights: a base of positions or an epsilon fits any tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.layouts import GRIDDED
from vidlang.nn.spec import TransformerSpec

# What decides how fast it is computed and in how many bits, not what.
FREE = ("dtype", "remat", "scan", "attention")
# What says nothing where there is no window, and where positions are learned.
WINDOWS, ROTARY = ("global_every", "local_base"), ("rotary_base", "rotary_scaling")

# What of a tower no tensor shows. All else that a model may have otherwise (more frames, a finer grid, adapters,
# another pool) is either seen in the shapes, or is what a recipe makes of the tower on purpose.
TOWER = ("heads", "norm", "activation", "epsilon", "causal")
# As little shows what padding is read as, and the epsilon of norms that a tower has beside those of its layers.
NORMS = {"stem_epsilon": "norm_stem", "pooled_epsilon": "norm_pooled"}
# The parts of a model by their sections.
PARTS = {"video": "video_encoder", "text": "text_encoder"}


def check_towers(
    given: Mapping[str, Any],
    published: Mapping[str, Any],
    folder: Path,
    into: str = "",
    allowed: Sequence[str] = (),
) -> None:
    """ValueError that lists where the towers of two `model` sections differ, of those that `into` takes.

    allowed: patterns of settings that differ on purpose, as AVION's activation does from that of CLIP's weights.
    """
    problems: list[str] = []
    for name, part in PARTS.items():
        mine, theirs = given.get(name), published.get(name)
        if into.split("/")[0] not in ("", part) or not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
            continue
        here, there = (call(TransformerSpec, tower["transformer"], what=f"model.{name}") for tower in (mine, theirs))
        problems += [
            f"{name}.transformer.{field} is {getattr(here, field)!r} and theirs {getattr(there, field)!r}"
            for field in TOWER
            if getattr(here, field) != getattr(there, field)
        ]
        if there.layout in GRIDDED and here.layout != there.layout:
            problems.append(f"{name}.transformer.layout is {here.layout!r} and theirs {there.layout!r}")
        if name == "video":
            problems += [
                f"video.{field} is {_three(mine, field)} and theirs {_three(theirs, field)}"
                for field in ("mean", "std")
                if not np.allclose(_three(mine, field), _three(theirs, field), atol=1e-3)
            ]
        for field, owner in NORMS.items():
            epsilons = [tower.get(field) or spec.epsilon for tower, spec in ((mine, here), (theirs, there))]
            if mine.get(owner) and theirs.get(owner) and len(set(epsilons)) > 1:
                problems.append(f"{name}.{field} is {epsilons[0]!r} and theirs {epsilons[1]!r}")
        if mine.get("pad_word") != theirs.get("pad_word"):
            problems.append(f"{name}.pad_word is {mine.get('pad_word')!r} and theirs {theirs.get('pad_word')!r}")
    problems = [each for each in problems if not any(re.search(pattern, each.split(" ")[0]) for pattern in allowed)]
    if problems:
        raise ValueError(
            f"the model is not that of the weights in {folder}: {'; '.join(problems)}; give theirs, or name the "
            "setting in the stage's init_allow"
        )


def _three(tower: Mapping[str, Any], field: str) -> tuple[float, ...]:
    """The mean or deviation of each colour that pixels are normalised by."""
    found = tuple(tower.get(field, (0.5,)))
    return found * 3 if len(found) == 1 else found


def check_section(given: Mapping[str, Any], published: Mapping[str, Any], folder: Path) -> None:
    """ValueError that lists where the two differ; a text may be shorter than rotary positions allow."""
    here, there = (call(DecoderSpec, section, what="model.language") for section in (given, published))
    silent = {*FREE, *(() if here.window or there.window else WINDOWS)}
    if here.positions == there.positions == "learned":
        silent |= set(ROTARY)
    elif here.positions == there.positions and here.max_length <= there.max_length:
        silent.add("max_length")
    differing = [
        f"{field.name} is {mine!r} and theirs {theirs!r}"
        for field in dataclasses.fields(DecoderSpec)
        if (mine := getattr(here, field.name)) != (theirs := getattr(there, field.name)) and field.name not in silent
    ]
    if differing:
        raise ValueError(
            f"the model's language section is not that of the weights in {folder}: {'; '.join(differing)}; give theirs"
        )
