"""Whether a config's `language` section is that of the weights: a base of positions or an epsilon fits any tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec

# What decides how fast it is computed and in how many bits, not what.
FREE = ("dtype", "remat", "scan", "attention")
# What says nothing where there is no window, and where positions are learned.
WINDOWS, ROTARY = ("global_every", "local_base"), ("rotary_base", "rotary_scaling")


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
