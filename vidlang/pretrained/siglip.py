"""SigLIP and SigLIP 2, from and to the folders that Hugging Face has: a dual encoder of images with a sigmoid loss.

An image's vector is what attention by a learned query and an mlp make of all its tokens, and lies in the joint space as
it is. A text's is its last token: texts fill all places with padding that is a word like others (`pad_word`), id 1 in
SigLIP and 0 in SigLIP 2, whose vocabulary is Gemma's. Here texts may be padded with 0 in both; they must have all of
`max_length` places. Cosines have a scale and a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _clip, _vision
from vidlang.pretrained._blocks import blocks, linear, norm
from vidlang.pretrained._clip import Names, layer_names
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import Rule
from vidlang.pretrained._tables import Table
from vidlang.pretrained._texts import need_plain
from vidlang.pretrained._vision import HERE, Section
from vidlang.pretrained.clip import HF_LAYER

TYPES = {"siglip": "SigLIP"}
CLASSES = {"SiglipModel": "dual_encoder"}
USUAL: Size3 = (1, 224, 224)
# What config.json leaves out where it is the usual.
COMMON = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_hidden_layers": 12, "hidden_size": 768}
COMMON |= {"intermediate_size": 3072, "num_attention_heads": 12}
VISION = {**COMMON, "image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True}
WORDS = {**COMMON, "vocab_size": 32_000, "max_position_embeddings": 64, "projection_size": None}
KNOWN = {"attention_dropout", "dropout", "initializer_factor"}
# SigLIP 2's vocabulary, by which it is known; its config.json does not say what texts are padded with.
GEMMA = 256_000
# Where training starts from, and how large a scale of cosines may be, which SigLIP leaves open.
TEMPERATURE = {"init": 0.1, "max_scale": 1000.0, "learnable": True, "bias": -10.0}
LEFT = (r"(text|vision)_model\.embeddings\.position_ids",)
NAMES = Names(
    video={},
    text={
        "words": "text_model.embeddings.token_embedding.weight",
        "positions": "text_model.embeddings.position_embedding.weight",
        "norm": "text_model.final_layer_norm",
    },
    video_layer=layer_names(HF_LAYER, "vision_model.encoder.layers.{}"),
    text_layer=layer_names(HF_LAYER, "text_model.encoder.layers.{}"),
    projections=("", "text_model.head"),
    turned=True,
)
POOL, POOL_PROJ = f"{HERE}/map_pool", "vision_model.head.attention.in_proj"


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config.json."""
    vision = _clip.part(config, "vision_config", VISION, KNOWN)
    words = _clip.part(config, "text_config", WORDS, KNOWN)
    need_plain(vision, {"vision_use_head": True})
    _clip.check_keys(config, {*_clip.PARTS, *KNOWN}, "")
    pad = words.get("pad_token_id")
    embed = words["projection_size"] or words["hidden_size"]
    if embed != vision["hidden_size"]:
        raise ValueError(
            f"config.json has projection_size {embed} of texts and hidden_size {vision['hidden_size']} of images, "
            "whose vectors are compared and must be of one size; fetch it again"
        )
    return {
        "name": _vision.kind_of(config, CLASSES),
        "video": {
            "transformer": _vision.transformer(vision, "SigLIP", 1e-6),
            "tubelet": (1, *_vision.pair(vision["patch_size"], "patch_size")),
            "pool": "map",
            **_vision.pixels(config, (0.5,), (0.5,)),
        },
        "text": {
            "vocab": words["vocab_size"],
            "max_length": words["max_position_embeddings"],
            "transformer": _vision.transformer(words, "SigLIP", 1e-6),
            "pool": "eos",
            "pad_word": (0 if words["vocab_size"] == GEMMA else 1) if pad is None else pad,
        },
        "embed": embed,
        "temperature": dict(TEMPERATURE),
        "video_projection": {"identity": True},
        "text_projection": {"bias": True},
    }


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config.json of a dual encoder of images with this section; clip: what its positions were made for."""
    clip = clip or USUAL
    if clip[0] != 1:
        raise ValueError(f"a SigLIP is of images; found a model of clips {clip}, of which there is none")
    common = _vision.config_common(section, clip, "SigLIP", {kind: name for name, kind in CLASSES.items()})
    beside = {key: common.pop(key) for key in ("architectures", "image_mean", "image_std")}
    words = {**_clip.text_config(section), "projection_size": section["embed"]}
    words["pad_token_id"] = section["text"].get("pad_word")
    config = {
        "model_type": "siglip",
        **beside,
        "vision_config": {"model_type": "siglip_vision_model", **common},
        "text_config": {"model_type": "siglip_text_model", **words},
    }
    _clip.check_counterpart(section, spec(config), "SigLIP")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(tensors)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    return _table(config).tensors(params)


def section(path: str | Path) -> Section:
    """The model's section of a folder."""
    return spec(_vision.read(path, TYPES))


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    return _clip_of(_vision.read(path, TYPES))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    return _table(_vision.read(path, TYPES)).shapes(read_weights(path))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    return to_flax(read_weights(path), _vision.read(path, TYPES))


def _clip_of(config: Mapping[str, Any]) -> Size3:
    return (1, *_vision.pair(_clip.part(config, "vision_config", VISION, KNOWN)["image_size"], "image_size"))


def _table(config: Mapping[str, Any]) -> Table:
    section, clip = spec(config), _clip_of(config)
    video, text, embed = section["video"], section["text"], section["embed"]
    s, t = (TransformerSpec(**tower["transformer"]) for tower in (video, text))
    places = (clip[1] // video["tubelet"][1]) * (clip[2] // video["tubelet"][2])
    rules = [
        *_vision.stem("vision_model.embeddings.patch_embedding", video["tubelet"], s.width, flat=True),
        Rule(f"{HERE}/spatial", "vision_model.embeddings.position_embedding.weight", (places, s.width)),
        *blocks(_vision.LAYERS, NAMES.video_layer, s),
        *norm(f"{HERE}/norm", "vision_model.post_layernorm", s.width),
        *_pool(s),
        *_clip.text_rules(NAMES, text, t),
        *linear("text_projection", NAMES.projections[1], (t.width,), (embed,)),
        *(
            Rule(path, name, (), 0, _number, _one)
            for path, name in (("log_scale", "logit_scale"), ("bias", "logit_bias"))
        ),
    ]
    fused = _clip.in_proj(POOL_PROJ, s.width, 0)
    return Table(tuple(rules), tuple(fused), (), (_vision.no_time(s.width),), LEFT)


def _pool(s: TransformerSpec) -> list[Rule]:
    """Rules of what makes one vector of all tokens."""
    heads = (s.heads, s.head_size)
    rules = [_vision.token(f"{POOL}/latent", "vision_model.head.probe", s.width)]
    for part in ("query", "key", "value"):
        rules += linear(f"{POOL}/{part}", f"{POOL_PROJ}.{part}", (s.width,), heads)
    return [
        *rules,
        *linear(f"{POOL}/out", "vision_model.head.attention.out_proj", heads, (s.width,)),
        *norm(f"{POOL}/norm", "vision_model.head.layernorm", s.width),
        *linear(f"{POOL}/mlp_in", "vision_model.head.mlp.fc1", (s.width,), (s.mlp,)),
        *linear(f"{POOL}/mlp_out", "vision_model.head.mlp.fc2", (s.mlp,), (s.width,)),
    ]


def _number(x: np.ndarray) -> np.ndarray:
    return x.reshape(())


def _one(x: np.ndarray) -> np.ndarray:
    return x.reshape(1)
