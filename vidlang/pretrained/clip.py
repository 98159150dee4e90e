"""CLIP: Hugging Face's folders, OpenAI's files (.pt, which are TorchScript archives), and OpenCLIP's files and folders.

The last two name tensors alike. OpenAI's models have the approximate GELU and heads of 64 channels; OpenCLIP's are what
open_clip_config.json says, which must lie beside the file, for no tensor tells. A cls token's position is part of it
here. The whole is a dual encoder of images, each a clip of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _clip, _open_clip, _vision
from vidlang.pretrained._clip import Names, layer_names
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._tables import Table
from vidlang.pretrained._vision import Section

TYPES = {"clip": "CLIP"}
USUAL: Size3 = (1, 224, 224)
CLASSES = {"CLIPModel": "dual_encoder"}
# What config.json leaves out where it is the usual.
COMMON = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
VISION = {**COMMON, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
VISION |= {"image_size": 224, "patch_size": 32, "num_channels": 3}
WORDS = {**COMMON, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
WORDS |= {"vocab_size": 49_408, "max_position_embeddings": 77}
WHOLE = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
# What only training asks for, what the whole model says, and what says which tensors these are.
KNOWN = {"attention_dropout", "dropout", "initializer_factor", "projection_dim", "tensor_names"}
LEFT = (r"(text|vision)_model\.embeddings\.position_ids",)
HF_LAYER = {
    "attention_norm": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
HF = Names(
    video={
        "patch": "vision_model.embeddings.patch_embedding",
        "cls": "vision_model.embeddings.class_embedding",
        "spatial": "vision_model.embeddings.position_embedding.weight",
        "stem_norm": "vision_model.pre_layrnorm",
        "norm": "vision_model.post_layernorm",
    },
    text={
        "words": "text_model.embeddings.token_embedding.weight",
        "positions": "text_model.embeddings.position_embedding.weight",
        "norm": "text_model.final_layer_norm",
    },
    video_layer=layer_names(HF_LAYER, "vision_model.encoder.layers.{}"),
    text_layer=layer_names(HF_LAYER, "text_model.encoder.layers.{}"),
    projections=("visual_projection", "text_projection"),
    turned=True,
)
OPENAI = Names(
    video={
        "patch": "visual.conv1",
        "cls": "visual.class_embedding",
        "spatial": "visual.positional_embedding",
        "stem_norm": "visual.ln_pre",
        "norm": "visual.ln_post",
    },
    text={"words": "token_embedding.weight", "positions": "positional_embedding", "norm": "ln_final"},
    video_layer=layer_names(_clip.OPENAI_LAYER, "visual.transformer.resblocks.{}"),
    text_layer=layer_names(_clip.OPENAI_LAYER, "transformer.resblocks.{}"),
    projections=("visual.proj", "text_projection"),
    turned=False,
    qkv=("visual.transformer.resblocks.{}.attn.in_proj", "transformer.resblocks.{}.attn.in_proj"),
)


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    vision = _clip.part(config, "vision_config", VISION, KNOWN)
    words = _clip.part(config, "text_config", WORDS, KNOWN)
    whole = {**WHOLE, **config}
    _clip.check_keys(whole, {*WHOLE, *_clip.PARTS, *KNOWN}, "")
    return {
        "name": _vision.kind_of(config, CLASSES),
        "video": {
            "transformer": _vision.transformer(vision, "CLIP", 1e-5),
            "tubelet": (1, *_vision.pair(vision["patch_size"], "patch_size")),
            "pool": "cls",
            **_vision.pixels(config, _clip.MEAN, _clip.STD),
            "stem_bias": False,
            "norm_stem": True,
        },
        "text": {
            "vocab": words["vocab_size"],
            "max_length": words["max_position_embeddings"],
            "transformer": {**_vision.transformer(words, "CLIP", 1e-5), "causal": True},
            "pool": "eos",
        },
        "embed": whole["projection_dim"],
        "temperature": _clip.temperature(whole["logit_scale_init_value"]),
        "video_projection": {},
        "text_projection": {},
    }


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a dual encoder of images with this section; clip: what its positions were made for."""
    clip = clip or USUAL
    if clip[0] != 1:
        raise ValueError(f"a CLIP is of images; found a model of clips {clip}, which avion or lavila may be")
    common = _vision.config_common(section, clip, "CLIP", {kind: name for name, kind in CLASSES.items()})
    beside = {key: common.pop(key) for key in ("architectures", "image_mean", "image_std")}
    embed = {"projection_dim": section["embed"]}
    words = _clip.text_config(section)
    # What transformers takes a text's vector of: CLIP's end of text has the largest id.
    words |= {"eos_token_id": words["vocab_size"] - 1, "bos_token_id": words["vocab_size"] - 2, "pad_token_id": 0}
    config = {
        "model_type": "clip",
        **beside,
        **embed,
        "logit_scale_init_value": -math.log(section["temperature"]["init"]),
        "vision_config": {"model_type": "clip_vision_model", **common, **embed},
        "text_config": {"model_type": "clip_text_model", **words, **embed},
    }
    _clip.check_counterpart(section, spec(config), "CLIP")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(tensors)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    return _table(config).tensors(params)


def section(path: str | Path) -> Section:
    """The model's section of a folder or a file."""
    return spec(_read(Path(path))[0])


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    return _clip_of(_read(Path(path))[0])


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    config, tensors = _read(Path(path))
    return _table(config).shapes(tensors)


def load(path: str | Path) -> Any:
    """The parameters of a folder or a file."""
    config, tensors = _read(Path(path))
    return to_flax(tensors, config)


def _clip_of(config: Mapping[str, Any]) -> Size3:
    return (1, *_vision.pair(_clip.part(config, "vision_config", VISION, KNOWN)["image_size"], "image_size"))


def _table(config: Mapping[str, Any]) -> Table:
    if (names := config.get("tensor_names", "hf")) not in ("hf", "openai"):
        raise ValueError(f"config has tensor_names {names!r}; they are 'openai' or 'hf'")
    openai = names == "openai"
    return _clip.table(OPENAI if openai else HF, spec(config), _clip_of(config), _open_clip.LEFT if openai else LEFT)


def _read(path: Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """(config, tensors) of a folder of either kind, or of a file."""
    if path.is_dir() and not (path / _open_clip.CONFIG).is_file():
        return _vision.read(path, TYPES), read_weights(path)
    return _open_clip.read(path)
