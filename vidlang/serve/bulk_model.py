"""The model that embeds a corpus: from a run, a portable folder or the files of a published model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidlang.core.config import call
from vidlang.core.sharding import Mesh
from vidlang.core.tree import flatten_paths
from vidlang.data.pipeline import ClipSpec
from vidlang.data.tokenizer import Tokenizer
from vidlang.ops.dials import Dials
from vidlang.serve import portable
from vidlang.serve.about import LOOK_KEYS, About, about_stage
from vidlang.serve.load import load
from vidlang.train import build
from vidlang.train.evaluate import choose_checkpoint
from vidlang.train.recipe import read_recipe
from vidlang.train.saved import read_note, restore_params

METHODS = {"videos": "embed_video", "texts": "embed_text"}


@dataclass(frozen=True)
class BulkModel:
    """A model with its parameters on every device, and how clips and texts come to it; `note` tells it from others."""

    about: About
    params: Any
    tokenizer: Tokenizer | None
    note: Mapping[str, Any]

    @property
    def module(self) -> nn.Module:
        """The Linen module."""
        return self.about.build()

    def check(self, kinds: Sequence[str]) -> None:
        """ValueError unless it can embed these."""
        for kind in kinds:
            if not hasattr(self.module, METHODS[kind]):
                raise ValueError(f"the model {self.about.name!r} embeds no {kind}; leave them out of --what")
        if "videos" in kinds and self.about.spec is None:
            raise ValueError(f"the model {self.about.name!r} was not trained on frames, so it embeds no videos")
        if "texts" in kinds and self.tokenizer is None:
            raise ValueError(
                f"the model {self.about.name!r} has no tokenizer, so it embeds no texts; give --what=videos"
            )

    def spec(self, clip: Mapping[str, Any]) -> ClipSpec:
        """How each clip is looked at, once; `clip` on top of how the model's own evaluation does."""
        if unknown := [name for name in clip if name not in LOOK_KEYS or name in ("views", "crops")]:
            raise ValueError(f"clip has {unknown[0]!r}; it has only frames, size, times, crop, pixels here")
        own = {name: self.about.clip[name] for name in LOOK_KEYS if name in self.about.clip}
        return build.clip_spec({**own, **clip, "views": 1, "crops": 1})

    def dials(self, section: Mapping[str, Any]) -> Dials:
        """What it is evaluated at, and on top of that the section."""
        found: Dials = call(Dials, {**self.about.dials, **section}, what="dials")
        return found


def read_model(path: str | Path, mesh: Mesh, *, step: int | None = None, family: str | None = None) -> BulkModel:
    """The model of a run (its newest checkpoint, or `step`) or a portable folder; with `family`, of published files."""
    note: dict[str, Any]
    if family is not None or portable.is_portable(path):
        loaded = load(path, family=family, step=step)
        note = {"model": loaded.about.name, "parameters": digest(loaded.params)}
        return BulkModel(loaded.about, loaded.params, loaded.tokenizer, note)
    folder, step = choose_checkpoint(path, step)
    found = read_note(folder, step)
    stage = read_recipe(found["config"]).stages[found["stage"]]
    about = about_stage(stage, found, {})
    words = build.tokenizer(stage, build.clip_spec(stage.clip)) if stage.tokenizer and about.text_length else None
    return BulkModel(about, restore_params(folder, step, mesh), words, run_note(folder, step))


def run_note(folder: Path, step: int) -> dict[str, Any]:
    """Tells one checkpoint of a run from others."""
    found = read_note(folder, step)
    stage = read_recipe(found["config"]).stages[found["stage"]]
    return {"stage": stage.name, "step": step, "config": found["fingerprint"]}


def digest(params: Any) -> str:
    """Tells parameters from others."""
    found = hashlib.sha256()
    for name, leaf in sorted(flatten_paths(params).items()):
        found.update(f"{name}: {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return found.hexdigest()[:16]


def plain(value: Any) -> Any:
    """Settings as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))
