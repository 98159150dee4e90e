"""ViViT, from and to the folders that Hugging Face has: attention over all places of a clip, which share one table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _vision
from vidlang.pretrained._blocks import norm
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import need, without_prefix
from vidlang.pretrained._tables import Table, added
from vidlang.pretrained._vision import HERE, Section

TYPES = {"vivit": "ViViT"}
KINDS = {"VivitModel": "", "VivitForVideoClassification": "classifier"}
CLASSES = {kind: name for name, kind in KINDS.items()}
KNOWN = ("num_frames", "tubelet_size", "video_size")
USUAL: Size3 = (32, 224, 224)
# A pooler that no published model has trained.
LEFT = (r"pooler\.dense\.(weight|bias)",)
LAYER = {
    "attention_norm": "encoder.layer.{}.layernorm_before",
    "attention/query": "encoder.layer.{}.attention.attention.query",
    "attention/key": "encoder.layer.{}.attention.attention.key",
    "attention/value": "encoder.layer.{}.attention.attention.value",
    "attention/out": "encoder.layer.{}.attention.output.dense",
    "mlp_norm": "encoder.layer.{}.layernorm_after",
    "mlp_in": "encoder.layer.{}.intermediate.dense",
    "mlp_out": "encoder.layer.{}.output.dense",
}


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    need(config, ("tubelet_size", "num_frames"))
    tubelet = tuple(config["tubelet_size"])
    _vision.check_config({"patch_size": list(tubelet[1:]), **config}, KNOWN)
    clip = _clip(config)
    if tuple(config.get("video_size", clip)) != clip:
        raise ValueError(f"config.json has video_size {config['video_size']}, and clips of {clip}; give the right one")
    tower = {
        "transformer": _vision.transformer({"hidden_act": "gelu_fast", **config}, "ViViT", 1e-6),
        "tubelet": tubelet,
        "pool": "cls",
        "positions": "joint",
        **_vision.pixels(config, (0.5,), (0.5,)),
    }
    return _vision.whole(tower, config, _vision.kind_of(config, KINDS))


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a tower or classifier with this section."""
    clip = clip or USUAL
    common = _vision.config_common(section, clip, "ViViT", CLASSES)
    del common["patch_size"]
    tower, _ = _vision.of_section(section, "ViViT")
    config = {
        "model_type": "vivit",
        **common,
        "num_frames": clip[0],
        "tubelet_size": list(tower.tubelet),
        "qkv_bias": True,
    }
    _vision.check_counterpart(section, spec(config), "ViViT")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(without_prefix(tensors, "vivit."))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    found, bare = _table(config).tensors(params), "heads" not in spec(config)
    return {name if bare or name.startswith("classifier.") else f"vivit.{name}": x for name, x in found.items()}


def section(path: str | Path) -> Section:
    """The model's section of a folder."""
    return spec(_vision.read(path, TYPES))


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    return _clip(_vision.read(path, TYPES))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    return _table(_vision.read(path, TYPES)).shapes(without_prefix(read_weights(path), "vivit."))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    return to_flax(read_weights(path), _vision.read(path, TYPES))


def _clip(config: Mapping[str, Any]) -> Size3:
    return (config["num_frames"], *_vision.pair(config["image_size"], "image_size"))


def _table(config: Mapping[str, Any]) -> Table:
    """The rules of a tower or classifier."""
    section = spec(config)
    tubelet, s = section["video"]["tubelet"], TransformerSpec(**section["video"]["transformer"])
    count = math.prod(total // size for total, size in zip(_clip(config), tubelet, strict=True))
    rules, fixed = _vision.layers(LAYER, s, _vision.without_bias(config, LAYER))
    positions, fused = _vision.cls_and_places("embeddings.position_embeddings", f"{HERE}/positions", count, s.width)
    rules += [
        _vision.token(f"{HERE}/cls", "embeddings.cls_token", s.width),
        *_vision.stem("embeddings.patch_embeddings.projection", tubelet, s.width, flat=False),
        *positions,
        *norm(f"{HERE}/norm", "layernorm", s.width),
        *_vision.head(section, "classifier", s.width),
    ]
    folds = (added(f"{HERE}/cls", f"{HERE}/cls_position", (s.width,)),)
    return Table(tuple(rules), tuple(fused), folds, tuple(fixed), LEFT)
