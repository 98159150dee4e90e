"""What AVION and LaViLa share: a CLIP of videos, or its vision tower under a classifier, read off its tensors.

Their checkpoints hold a state dict and the arguments of training. No tensor tells how many heads there are: in all
published sizes they are of 64 channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _clip, _vision
from vidlang.pretrained._clip import HEAD_SIZE, Names
from vidlang.pretrained._files import read_checkpoint
from vidlang.pretrained._vision import HEAD, Section

# What both normalise pixels by. CLIP's numbers but for red, whose mean is 0.481 there: models must see what they saw.
MEAN = (108.3272985 / 255, 116.7460125 / 255, 104.09373615 / 255)
STD = (68.5005327 / 255, 66.6321579 / 255, 70.32316305 / 255)
Config = dict[str, Any]


def measure(tensors: Mapping[str, np.ndarray], names: Names, what: str) -> Config:
    """What a config would say of the model: its sizes, and how many labels its classifier has, if it is one."""
    try:
        config: Config = {"video": _sizes(tensors, names.video_layer)}
        width = config["video"]["width"]
        places = tensors[names.video["spatial"]].shape[-2] - 1
        stem = tensors[f"{names.video['patch']}.weight"].shape
        patch = stem[-1] if len(stem) == 4 else math.isqrt(stem[-1] // 3)
        temporal = names.video.get("temporal", "")
        config |= {
            "frames": tensors[temporal].shape[-2] if temporal in tensors else 1,
            "image_size": math.isqrt(places) * patch,
            "patch_size": patch,
        }
        if f"{names.head}.bias" in tensors:
            return {**config, "labels": tensors[f"{names.head}.bias"].shape[0]}
        config["text"] = _sizes(tensors, names.text_layer)
        config["vocab"] = tensors[names.text["words"]].shape[0]
        config["max_length"] = tensors[names.text["positions"]].shape[0]
        config["embed"] = tensors[names.projections[0]].shape[-1]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the tensors are not those of {what}'s dual encoder or classifier: {error!r} is not among them or not of "
            "that shape; give such a checkpoint"
        ) from None
    if width % HEAD_SIZE or config["text"]["width"] % HEAD_SIZE:
        raise ValueError(f"a tower of width {width} or {config['text']['width']} has no heads of {HEAD_SIZE} channels")
    return config


def _sizes(tensors: Mapping[str, np.ndarray], layer: Mapping[str, str]) -> Config:
    before, after = layer["mlp_in"].split("{}")
    pattern = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}\.weight")
    numbers = [int(found[1]) for name in tensors if (found := pattern.fullmatch(name))]
    if not numbers:
        raise KeyError(f"{layer['mlp_in'].format(0)}.weight")
    mlp, width = tensors[f"{layer['mlp_in'].format(0)}.weight"].shape
    return {"layers": 1 + max(numbers), "width": width, "heads": width // HEAD_SIZE, "mlp": mlp}


def whole(config: Config, video: Section, tower: Section, text: Section) -> Section:
    """The model's section: what its sizes say, and what the family says of both transformers and of the tower."""
    patch = config["patch_size"]
    encoder = {
        "transformer": {**config["video"], **video},
        "tubelet": (1, patch, patch),
        "pool": "cls",
        "mean": MEAN,
        "std": STD,
        "stem_bias": False,
        "norm_stem": True,
        "temporal_std": 0.0,
        **tower,
    }
    if "labels" in config:
        return {"name": "classifier", "video": encoder, "heads": {HEAD: config["labels"]}}
    return {
        "name": "dual_encoder",
        "video": encoder,
        "text": {
            "vocab": config["vocab"],
            "max_length": config["max_length"],
            "transformer": {**config["text"], **text, "causal": True},
            "pool": "eos",
        },
        "embed": config["embed"],
        "temperature": _clip.temperature(_clip.SCALE_START),
        "video_projection": {},
        "text_projection": {},
    }


def config_of(section: Mapping[str, Any], clip: Size3 | None, what: str) -> Config:
    """What `measure` would say of a model with this section, whose positions were made for this clip."""
    tower, s = _vision.of_section(section, what)
    if clip is None or clip[1] != clip[2] or len(set(tower.tubelet[1:])) > 1:
        raise ValueError(f"{what} is of square clips and patches; found clips {clip} and tubelets {tower.tubelet}")
    sizes = {"layers": s.layers, "width": s.width, "heads": s.heads, "mlp": s.mlp}
    config: Config = {"video": sizes, "frames": clip[0], "image_size": clip[1], "patch_size": tower.tubelet[1]}
    if section.get("name") == "classifier":
        if list(heads := dict(section["heads"])) != [HEAD]:
            raise ValueError(f"model.heads is {heads}; a classifier of {what} has one head, called {HEAD!r}")
        return {**config, "labels": heads[HEAD]}
    words = _clip.text_config(section)
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    config["text"] = dict(zip(sizes, (words[key] for key in keys), strict=True))
    if wrong := [n for n, t in (("video", s.head_size), ("text", _head_size(config["text"]))) if t != HEAD_SIZE]:
        raise ValueError(f"the heads of model.{wrong[0]} are not of {HEAD_SIZE} channels, as they are in every {what}")
    return {
        **config,
        "vocab": words["vocab_size"],
        "max_length": words["max_position_embeddings"],
        "embed": section["embed"],
    }


def _head_size(sizes: Config) -> int:
    return int(sizes["width"]) // int(sizes["heads"])


def clip_of(config: Mapping[str, Any]) -> Size3:
    """The clip that the positions were made for."""
    return config["frames"], config["image_size"], config["image_size"]


def read(path: Path) -> tuple[Mapping[str, np.ndarray], Config]:
    """(tensors, arguments of training) of a checkpoint."""
    tensors, others = read_checkpoint(path)
    args = others.get("args")
    return tensors, args if isinstance(args, dict) else {}
