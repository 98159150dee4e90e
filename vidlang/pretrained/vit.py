"""ViT, from and to the folders that Hugging Face has, and timm's files of the same model, which name tensors otherwise.

What is read is a tower of one frame, with its classifier where the files have one. A file of timm's has no config.json:
what it is follows from its tensors, and how many heads from its width, as in all published sizes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _vision
from vidlang.pretrained._blocks import norm
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import without_prefix
from vidlang.pretrained._tables import Table, added, thirds
from vidlang.pretrained._vision import HERE, Section

TYPES = {"vit": "ViT"}
KINDS = {"ViTModel": "", "ViTForImageClassification": "classifier"}
CLASSES = {kind: name for name, kind in KINDS.items()}
# Keys of config.json that are known and need nothing, and what says that tensors have timm's names.
KNOWN = ("encoder_stride", "pooler_output_size", "pooler_act", "tensor_names")
USUAL: Size3 = (1, 224, 224)
# What is not the tower's: a pooler that only other tasks train, and the token of masked patches.
LEFT = (r"pooler\.dense\.(weight|bias)", r"embeddings\.mask_token")
HF = {
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
HF_LAYER = {
    "attention_norm": "encoder.layer.{}.layernorm_before",
    "attention/query": "encoder.layer.{}.attention.attention.query",
    "attention/key": "encoder.layer.{}.attention.attention.key",
    "attention/value": "encoder.layer.{}.attention.attention.value",
    "attention/out": "encoder.layer.{}.attention.output.dense",
    "mlp_norm": "encoder.layer.{}.layernorm_after",
    "mlp_in": "encoder.layer.{}.intermediate.dense",
    "mlp_out": "encoder.layer.{}.output.dense",
}
TIMM = {"cls": "cls_token", "positions": "pos_embed", "patch": "patch_embed.proj", "norm": "norm", "head": "head"}
QKV = "blocks.{}.attn.qkv"
TIMM_LAYER = {
    "attention_norm": "blocks.{}.norm1",
    **{f"attention/{part}": f"{QKV}.{part}" for part in ("query", "key", "value")},
    "attention/out": "blocks.{}.attn.proj",
    "mlp_norm": "blocks.{}.norm2",
    "mlp_in": "blocks.{}.mlp.fc1",
    "mlp_out": "blocks.{}.mlp.fc2",
}
# Widths whose heads are not of 64 channels, with how many there are.
HEADS = {1280: 16, 1408: 16}


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    _vision.check_config(config, KNOWN)
    timm = _is_timm(config)
    patch = _vision.pair(config["patch_size"], "patch_size")
    tower = {
        "transformer": _vision.transformer(config, "ViT", 1e-6 if timm else 1e-12),
        "tubelet": (1, *patch),
        "pool": "cls",
        **_vision.pixels(config, (0.5,), (0.5,)),
    }
    return _vision.whole(tower, config, _vision.kind_of(config, KINDS))


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a tower or classifier with this section."""
    clip = clip or USUAL
    if clip[0] != 1:
        raise ValueError(f"a ViT is of images; found a model of clips {clip}, which a video family may be")
    common = _vision.config_common(section, clip, "ViT", CLASSES)
    config = {"model_type": "vit", **common, "qkv_bias": True}
    _vision.check_counterpart(section, spec(config), "ViT")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(_plain(tensors, config))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    found = _table(config).tensors(params)
    if _is_timm(config) or "heads" not in spec(config):
        return found
    return {name if name.startswith("classifier.") else f"vit.{name}": tensor for name, tensor in found.items()}


def section(path: str | Path) -> Section:
    """The model's section of a folder or a file."""
    return spec(_read(path)[0])


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    return (1, *_vision.pair(_read(path)[0]["image_size"], "image_size"))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    config, tensors = _read(path)
    return _table(config).shapes(_plain(tensors, config))


def load(path: str | Path) -> Any:
    """The parameters of a folder or a file."""
    config, tensors = _read(path)
    return to_flax(tensors, config)


def describe(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The config.json that timm's tensors would have."""
    try:
        width, _, *patch = tensors["patch_embed.proj.weight"].shape
        mlp, places = tensors["blocks.0.mlp.fc1.weight"].shape[0], tensors["pos_embed"].shape[1] - 1
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the tensors are not those of timm's ViT: {error!r}; give such a file, or a folder with config.json"
        ) from None
    side, heads = math.isqrt(places), HEADS.get(width, width // 64)
    if side * side != places or not heads or width % heads:
        raise ValueError(
            f"a ViT of width {width} with {places} places is of no known size; give a Hugging Face folder, whose "
            "config.json tells its heads and its image"
        )
    found = {
        "model_type": "vit",
        "tensor_names": "timm",
        "architectures": ["ViTModel"],
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(n[1]) for name in tensors if (n := re.match(r"blocks\.(\d+)\.", name))),
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "patch_size": list(patch),
        "image_size": [side * size for size in patch],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }
    if "head.weight" in tensors:
        found |= {"architectures": ["ViTForImageClassification"], "num_labels": tensors["head.weight"].shape[0]}
    return found


def _read(path: str | Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """(config, tensors) of a folder of either kind, or of a file with timm's names."""
    path = Path(path)
    if not path.is_dir():
        tensors = read_weights(path)
        return describe(tensors), tensors
    try:
        said = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}  # what is wrong with it is said below
    if "architecture" not in said:
        return _vision.read(path, TYPES), read_weights(path)
    tensors = read_weights(path)
    pixels = said.get("pretrained_cfg") or {}
    beside = {f"image_{key}": pixels[key] for key in ("mean", "std") if key in pixels}
    return describe(tensors) | beside, tensors


def _is_timm(config: Mapping[str, Any]) -> bool:
    if (names := config.get("tensor_names", "hf")) not in ("hf", "timm"):
        raise ValueError(f"config has tensor_names {names!r}; they are 'timm' or 'hf'")
    return bool(names == "timm")


def _plain(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    return tensors if _is_timm(config) else without_prefix(tensors, "vit.")


def _table(config: Mapping[str, Any]) -> Table:
    """The rules of a tower or classifier."""
    section, timm = spec(config), _is_timm(config)
    names, layer = (TIMM, TIMM_LAYER) if timm else (HF, HF_LAYER)
    tubelet, s = section["video"]["tubelet"], TransformerSpec(**section["video"]["transformer"])
    height, width = _vision.pair(config["image_size"], "image_size")
    places = (height // tubelet[1]) * (width // tubelet[2])
    positions, fused = _vision.cls_and_places(names["positions"], f"{HERE}/spatial", places, s.width)
    rules, fixed = _vision.layers(layer, s, _vision.without_bias(config, layer))
    rules += [
        _vision.token(f"{HERE}/cls", names["cls"], s.width),
        *_vision.stem(names["patch"], tubelet, s.width, flat=True),
        *positions,
        *norm(f"{HERE}/norm", names["norm"], s.width),
        *_vision.head(section, names["head"], s.width),
    ]
    fused += thirds(QKV, s.width, s.layers) if timm else []
    folds = (added(f"{HERE}/cls", f"{HERE}/cls_position", (s.width,)),)
    fixed.append(_vision.no_time(s.width))
    return Table(tuple(rules), tuple(fused), folds, tuple(fixed), () if timm else LEFT)
