"""VideoMAE, from and to the folders that Hugging Face has: the encoder, a classifier over it, or all of pretraining.

Positions are fixed and in no file. Keys have no bias there, and a bias of zeros here. Norms behind the layers are not
of the layers' epsilon: the real classes leave those of the pooled mean and of the decoder at their library's usual.
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
from vidlang.pretrained._names import Rule, need, without_prefix
from vidlang.pretrained._tables import Fixed, Table
from vidlang.pretrained._vision import HERE, LAYERS, Section

TYPES = {"videomae": "VideoMAE"}
KINDS = {"VideoMAEModel": "", "VideoMAEForVideoClassification": "classifier", "VideoMAEForPreTraining": "mae"}
CLASSES = {kind: name for name, kind in KINDS.items()}
DECODER = {
    "layers": "decoder_num_hidden_layers",
    "width": "decoder_hidden_size",
    "heads": "decoder_num_attention_heads",
    "mlp": "decoder_intermediate_size",
}
# How pixels to rebuild are normalised is the objective's.
KNOWN = ("num_frames", "tubelet_size", "use_mean_pooling", "norm_pix_loss", *DECODER.values())
USUAL: Size3 = (16, 224, 224)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of PyTorch's norms where nobody says another.
EPSILON = 1e-5
PARTS = {
    "attention_norm": "layernorm_before",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
}
BIASES = {"attention/query": "attention.attention.q_bias", "attention/value": "attention.attention.v_bias"}
OUTSIDE = ("classifier.", "fc_norm.", "decoder.", "encoder_to_decoder.", "mask_token")


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    need(config, ("tubelet_size", "num_frames"))
    _vision.check_config(config, KNOWN)
    kind, mean = _vision.kind_of(config, KINDS), config.get("use_mean_pooling", True)
    if kind == "classifier" and not mean:
        raise ValueError(
            "config.json has use_mean_pooling false, where the real class judges a clip by its first token alone; a "
            "classifier with use_mean_pooling true is known"
        )
    stack = _vision.transformer(config, "VideoMAE", 1e-12)
    pooled = {"norm_pooled": True, "pooled_epsilon": EPSILON} if kind == "classifier" else {}
    tower = {
        "transformer": stack,
        "tubelet": (config["tubelet_size"], *_vision.pair(config["patch_size"], "patch_size")),
        "positions": "sincos",
        "pool": "mean",
        "final_norm": not mean,
        **pooled,
        **_vision.pixels(config, *IMAGENET),
    }
    if kind != "mae":
        return _vision.whole(tower, config, kind)
    need(config, tuple(DECODER.values()))
    decoder = {**stack, **{ours: config[theirs] for ours, theirs in DECODER.items()}}
    return {"name": "mae", "video": tower, "decoder": decoder, "norm_epsilon": EPSILON}


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a tower, a classifier or a masked autoencoder with this section."""
    clip = clip or USUAL
    common = _vision.config_common(section, clip, "VideoMAE", CLASSES)
    tower, _ = _vision.of_section(section, "VideoMAE")
    config = {
        "model_type": "videomae",
        **common,
        "num_frames": clip[0],
        "tubelet_size": tower.tubelet[0],
        "use_mean_pooling": not tower.final_norm,
        "qkv_bias": True,
    }
    if section.get("name") == "mae":
        config |= {theirs: section["decoder"][ours] for ours, theirs in DECODER.items()}
    _vision.check_counterpart(section, spec(config), "VideoMAE")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(without_prefix(tensors, "videomae."))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    found, bare = _table(config).tensors(params), not _vision.kind_of(config, KINDS)
    return {name if bare or name.startswith(OUTSIDE) else f"videomae.{name}": x for name, x in found.items()}


def section(path: str | Path) -> Section:
    """The model's section of a folder."""
    return spec(_vision.read(path, TYPES))


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that it was trained on."""
    config = _vision.read(path, TYPES)
    return (config["num_frames"], *_vision.pair(config["image_size"], "image_size"))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    return _table(_vision.read(path, TYPES)).shapes(without_prefix(read_weights(path), "videomae."))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    return to_flax(read_weights(path), _vision.read(path, TYPES))


def _layers(config: Mapping[str, Any], s: TransformerSpec, theirs: str, here: str) -> tuple[list[Rule], list[Fixed]]:
    """The rules of the layers called `theirs`, with the number of a layer in it."""
    known = BIASES if config.get("qkv_bias", True) else {}
    biases = {f"attention/{part}": "" for part in ("query", "key", "value")}
    biases |= {part: f"{theirs}.{name}" for part, name in known.items()}
    return _vision.layers({part: f"{theirs}.{name}" for part, name in PARTS.items()}, s, biases, here=here)


def _table(config: Mapping[str, Any]) -> Table:
    """The rules of a tower, a classifier or a masked autoencoder."""
    section = spec(config)
    tower, s = section["video"], TransformerSpec(**section["video"]["transformer"])
    rules, fixed = _layers(config, s, "encoder.layer.{}", LAYERS)
    rules += [
        *_vision.stem("embeddings.patch_embeddings.projection", tower["tubelet"], s.width, flat=False),
        *_vision.head(section, "classifier", s.width),
    ]
    if tower["final_norm"]:
        rules += norm(f"{HERE}/norm", "layernorm", s.width)
    if "norm_pooled" in tower:
        rules += norm(f"{HERE}/pooled_norm", "fc_norm", s.width)
    if "decoder" not in section:
        return Table(tuple(rules), fixed=tuple(fixed))
    d = TransformerSpec(**section["decoder"])
    more, none = _layers(config, d, "decoder.decoder_layers.{}", "decoder/stack/layers")
    frames, height, width = tower["tubelet"]
    more += [
        *linear("decoder/project", "encoder_to_decoder", (s.width,), (d.width,), bias=False),
        _vision.token("decoder/mask_token", "mask_token", d.width),
        *norm("decoder/norm", "decoder.norm", d.width),
        *linear("decoder/pixels", "decoder.head", (d.width,), (frames * height * width * 3,)),
    ]
    return Table((*rules, *more), fixed=(*fixed, *none))
