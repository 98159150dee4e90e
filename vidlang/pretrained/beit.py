"""BEiT, from and to the folders that Hugging Face has: a tower of one frame, and its classifier where there is one.

Relative positions are a table a layer here; that of pretraining, which all layers share, is copied into each. Keys have
no bias there, and a bias of zeros here. What predicts visual words is left out: of such files the tower alone is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.tree import flatten_paths
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.relative import table_rows
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _vision
from vidlang.pretrained._blocks import norm
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import Rule, without_prefix
from vidlang.pretrained._tables import Table, added
from vidlang.pretrained._vision import HERE, LAYERS, Section

TYPES = {"beit": "BEiT"}
MASKED = "BeitForMaskedImageModeling"
KINDS = {"BeitModel": "", "BeitForImageClassification": "classifier", MASKED: "masked"}
CLASSES = {"": "BeitModel", "classifier": "BeitForImageClassification"}
ABSOLUTE, RELATIVE, SHARED = (
    "use_absolute_position_embeddings",
    "use_relative_position_bias",
    "use_shared_relative_position_bias",
)
KNOWN = (
    *(ABSOLUTE, RELATIVE, SHARED, "use_mean_pooling", "use_mask_token", "layer_scale_init_value", "vocab_size"),
    # Of heads that paint segments, and of towers that give several layers.
    *("pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels", "auxiliary_num_convs"),
    *("auxiliary_concat_input", "semantic_loss_ignore_index", "out_features", "out_indices", "stage_names"),
    *("add_fpn", "reshape_hidden_states", "segmentation_indices"),
)
USUAL: Size3 = (1, 224, 224)
# The token of masked patches, what predicts visual words, and buffers.
LEFT = (r"embeddings\.mask_token", r"lm_head\.(weight|bias)", r".*relative_position_index")
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
BIAS = "relative_position_bias.relative_position_bias_table"
OUTSIDE = ("classifier.", "layernorm.")


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    _vision.check_config(config, KNOWN)
    kind, mean = _vision.kind_of(config, KINDS), config.get("use_mean_pooling", True)
    if kind == "masked" and not mean:
        raise ValueError(f"a {MASKED} with use_mean_pooling false has two norms after its layers, and none is known so")
    if config.get(RELATIVE) and config.get(SHARED):
        raise ValueError(f"config.json has both {RELATIVE} and {SHARED}; a model with either is known")
    relative = bool(config.get(RELATIVE) or config.get(SHARED))
    height, width = _vision.pair(config["image_size"], "image_size")
    if relative and height != width:
        raise ValueError(f"BEiT's relative positions are of square images; config.json has image_size {height, width}")
    stack = {
        **_vision.transformer(config, "BEiT", 1e-12),
        "layer_scale": float(config.get("layer_scale_init_value", 0.1)),
        "relative_positions": relative,
    }
    pool = {"pool": "mean", "cls": True, "norm_pooled": kind != "masked", "final_norm": kind == "masked"}
    tower = {
        "transformer": stack,
        "tubelet": (1, *_vision.pair(config["patch_size"], "patch_size")),
        "positions": "learned" if config.get(ABSOLUTE) else "none",
        **(pool if mean else {"pool": "cls"}),
        **_vision.pixels(config, (0.5,), (0.5,)),
    }
    return _vision.whole(tower, config, kind)


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a tower or classifier with this section."""
    clip = clip or USUAL
    if clip[0] != 1:
        raise ValueError(f"a BEiT is of images; found a model of clips {clip}, which a video family may be")
    common = _vision.config_common(section, clip, "BEiT", CLASSES)
    tower, s = _vision.of_section(section, "BEiT")
    config = {
        "model_type": "beit",
        **common,
        ABSOLUTE: tower.positions == "learned",
        RELATIVE: s.relative_positions,
        SHARED: False,
        "use_mean_pooling": tower.pool == "mean",
        "use_mask_token": False,
        "layer_scale_init_value": s.layer_scale,
        "drop_path_rate": s.drop_path,
    }
    if tower.pool == "mean" and tower.final_norm and "name" not in section:
        config["architectures"] = [MASKED]
    _vision.check_counterpart(section, spec(config), "BEiT")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(without_prefix(tensors, "beit."))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    if config.get(SHARED):
        tables = np.asarray(flatten_paths(params)[f"{LAYERS}/attention/relative"])
        if not (tables == tables[:1]).all():
            raise ValueError(
                f"{LAYERS}/attention/relative is not the same in all layers, as in a model with {SHARED}; write it "
                f"with {RELATIVE} true instead"
            )
    found = _table(config).tensors(params)
    kind = _vision.kind_of(config, KINDS)
    return {name if not kind or name.startswith(OUTSIDE) else f"beit.{name}": x for name, x in found.items()}


def section(path: str | Path) -> Section:
    """The model's section of a folder."""
    return spec(_vision.read(path, TYPES))


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    return (1, *_vision.pair(_vision.read(path, TYPES)["image_size"], "image_size"))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    return _table(_vision.read(path, TYPES)).shapes(without_prefix(read_weights(path), "beit."))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    return to_flax(read_weights(path), _vision.read(path, TYPES))


def _table(config: Mapping[str, Any]) -> Table:
    """The rules of a tower or classifier."""
    section = spec(config)
    tower, s = section["video"], TransformerSpec(**section["video"]["transformer"])
    height, width = _vision.pair(config["image_size"], "image_size")
    grid = (1, height // tower["tubelet"][1], width // tower["tubelet"][2])
    rules, fixed = _vision.layers(LAYER, s, {"attention/key": ""})
    rules += [
        _vision.token(f"{HERE}/cls", "embeddings.cls_token", s.width),
        *_vision.stem("embeddings.patch_embeddings.projection", tower["tubelet"], s.width, flat=True),
        *_vision.head(section, "classifier", s.width),
    ]
    if tower.get("final_norm", True):
        rules += norm(f"{HERE}/norm", "layernorm", s.width)
    if tower.get("norm_pooled"):
        rules += norm(f"{HERE}/pooled_norm", "pooler.layernorm", s.width)
    if s.relative_positions:
        name = f"encoder.{BIAS}" if config.get(SHARED) else f"encoder.layer.{{}}.attention.attention.{BIAS}"
        rules.append(Rule(f"{LAYERS}/attention/relative", name, (table_rows(grid), s.heads), s.layers))
    if s.layer_scale:
        for part, name in (("attention", "lambda_1"), ("mlp", "lambda_2")):
            rules.append(Rule(f"{LAYERS}/{part}_scale/scale", f"encoder.layer.{{}}.{name}", (s.width,), s.layers))
    if tower["positions"] == "none":
        return Table(tuple(rules), fixed=tuple(fixed), left=LEFT)
    table = "embeddings.position_embeddings"
    positions, fused = _vision.cls_and_places(table, f"{HERE}/spatial", grid[1] * grid[2], s.width)
    folds = (added(f"{HERE}/cls", f"{HERE}/cls_position", (s.width,)),)
    fixed.append(_vision.no_time(s.width))
    return Table((*rules, *positions), tuple(fused), folds, tuple(fixed), LEFT)
