"""TimeSformer, from and to the folders that Hugging Face has, with attention over time and space apart, or over both.

What comes behind the attention over time is two linear maps after another in published files. Here they are one: the
second is multiplied into the first, and does nothing on the way out. So does the position of cls, a part of cls here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _vision
from vidlang.pretrained._blocks import linear, norm
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import without_prefix
from vidlang.pretrained._tables import Fold, Table, added, thirds
from vidlang.pretrained._vision import HERE, LAYERS, Section

TYPES = {"timesformer": "TimeSformer"}
KINDS = {"TimesformerModel": "", "TimesformerForVideoClassification": "classifier"}
CLASSES = {kind: name for name, kind in KINDS.items()}
KNOWN = ("num_frames", "attention_type")
# Attention by its published names. That of space alone has no meaning for clips there: it takes frames for clips.
LAYOUTS = {"divided_space_time": "timesformer_cls", "joint_space_time": "joint"}
USUAL: Size3 = (8, 224, 224)
PIXELS = (0.45,), (0.225,)
QKV = "encoder.layer.{}.attention.attention.qkv"
TIME_QKV = "encoder.layer.{}.temporal_attention.attention.qkv"
LAYER = {
    "attention_norm": "encoder.layer.{}.layernorm_before",
    **{f"attention/{part}": f"{QKV}.{part}" for part in ("query", "key", "value")},
    "attention/out": "encoder.layer.{}.attention.output.dense",
    "mlp_norm": "encoder.layer.{}.layernorm_after",
    "mlp_in": "encoder.layer.{}.intermediate.dense",
    "mlp_out": "encoder.layer.{}.output.dense",
}
TIME_LAYER = {
    "time_attention_norm": "encoder.layer.{}.temporal_layernorm",
    **{f"time_attention/{part}": f"{TIME_QKV}.{part}" for part in ("query", "key", "value")},
    "time_attention/out": "encoder.layer.{}.temporal_attention.output.dense",
}


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    _vision.check_config(config, KNOWN)
    attention = config.get("attention_type", "divided_space_time")
    if attention not in LAYOUTS:
        raise ValueError(
            f"TimeSformer with the attention_type {attention!r} is not known; there are {', '.join(LAYOUTS)}"
        )
    tower = {
        "transformer": {**_vision.transformer(config, "TimeSformer", 1e-6), "layout": LAYOUTS[attention]},
        "tubelet": (1, *_vision.pair(config["patch_size"], "patch_size")),
        "pool": "cls",
        **_vision.pixels(config, *PIXELS),
    }
    return _vision.whole(tower, config, _vision.kind_of(config, KINDS))


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a tower or classifier with this section."""
    clip = clip or USUAL
    common = _vision.config_common(section, clip, "TimeSformer", CLASSES)
    s = _vision.of_section(section, "TimeSformer")[1]
    names = {ours: theirs for theirs, ours in LAYOUTS.items()}
    config = {
        "model_type": "timesformer",
        **common,
        "num_frames": clip[0],
        "attention_type": names.get(s.layout, "divided_space_time"),
        "qkv_bias": True,
        "drop_path_rate": s.drop_path,
    }
    _vision.check_counterpart(section, spec(config), "TimeSformer")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(without_prefix(tensors, "timesformer."))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    found, bare = _table(config).tensors(params), "heads" not in spec(config)
    return {name if bare or name.startswith("classifier.") else f"timesformer.{name}": x for name, x in found.items()}


def section(path: str | Path) -> Section:
    """The model's section of a folder."""
    return spec(_vision.read(path, TYPES))


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    config = _vision.read(path, TYPES)
    return (config.get("num_frames", USUAL[0]), *_vision.pair(config["image_size"], "image_size"))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    return _table(_vision.read(path, TYPES)).shapes(without_prefix(read_weights(path), "timesformer."))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    return to_flax(read_weights(path), _vision.read(path, TYPES))


def _table(config: Mapping[str, Any]) -> Table:
    """The rules of a tower or classifier."""
    section = spec(config)
    tubelet, s = section["video"]["tubelet"], TransformerSpec(**section["video"]["transformer"])
    height, width = _vision.pair(config["image_size"], "image_size")
    places = (height // tubelet[1]) * (width // tubelet[2])
    divided = s.layout != "joint"
    names = LAYER | (TIME_LAYER if divided else {})
    rules, fixed = _vision.layers(names, s, _vision.without_bias(config, names))
    positions, fused = _vision.cls_and_places("embeddings.position_embeddings", f"{HERE}/spatial", places, s.width)
    rules += [
        _vision.token(f"{HERE}/cls", "embeddings.cls_token", s.width),
        *_vision.stem("embeddings.patch_embeddings.projection", tubelet, s.width, flat=True),
        *positions,
        _vision.rows(f"{HERE}/temporal", "embeddings.time_embeddings", config.get("num_frames", USUAL[0]), s.width),
        *norm(f"{HERE}/norm", "layernorm", s.width),
        *_vision.head(section, "classifier", s.width),
    ]
    fused += thirds(QKV, s.width, s.layers)
    folds = [added(f"{HERE}/cls", f"{HERE}/cls_position", (s.width,))]
    if divided:
        fused += thirds(TIME_QKV, s.width, s.layers)
        second = f"{LAYERS}/time_attention/second"
        rules += linear(second, "encoder.layer.{}.temporal_dense", (s.width,), (s.width,), s.layers)
        folds.append(_both(f"{LAYERS}/time_attention/out", second, s))
    return Table(tuple(rules), tuple(fused), tuple(folds), tuple(fixed))


def _both(out: str, second: str, s: TransformerSpec) -> Fold:
    """Two linear maps after another as one."""

    def merge(x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        first_LAKD, first_LD = (x[f"{out}/{name}"].astype(np.float64) for name in ("kernel", "bias"))
        kernel_LDE = x[f"{second}/kernel"].astype(np.float64)
        flat_LFD = first_LAKD.reshape(s.layers, -1, s.width)
        return {
            f"{out}/kernel": (flat_LFD @ kernel_LDE).reshape(first_LAKD.shape),
            f"{out}/bias": (first_LD[:, None] @ kernel_LDE)[:, 0] + x[f"{second}/bias"],
        }

    nothing = {
        f"{second}/kernel": lambda: np.broadcast_to(np.eye(s.width, dtype=np.float32), (s.layers, s.width, s.width)),
        f"{second}/bias": lambda: np.zeros((s.layers, s.width), np.float32),
    }
    return Fold((f"{out}/kernel", f"{out}/bias"), nothing, merge)
