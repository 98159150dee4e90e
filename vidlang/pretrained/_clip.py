"""What CLIP and the models made of it have in common: one model's parts, whatever a family calls them.

CLIP's vision tower has a norm behind its stem, a stem without bias, and a cls token with a position; its text tower is
causal, and a text's vector is that of its last token. OpenAI's code takes the token with the largest id and pads with
0, which is a word of its own ("!"); transformers takes the first end of text and pads with more of these. Both mean the
last token that is no padding, which is what the tower's pool "eos" takes of texts that are padded with 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _tables, _texts, _vision
from vidlang.pretrained._blocks import blocks, linear, norm
from vidlang.pretrained._names import Rule
from vidlang.pretrained._texts import activation_name, need_plain, text_of
from vidlang.pretrained._vision import HERE, Section

TEXT = "text_encoder"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Heads of published models are this wide, where nothing else says how many there are.
HEAD_SIZE = 64
# CLIP's scale of cosines is never above this; what it starts from is in config.json, or this.
MAX_SCALE, SCALE_START = 100.0, math.log(1 / 0.07)
# The parts of config.json that are not settings.
PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of the model.

    video, text: by the parameter here; temporal "" where there are no positions in time. video_layer, text_layer: as of
    `_blocks.blocks`. projections: of videos and texts, and whether they are matrices [out, in]. qkv: names of linear
    maps that are query, key and value in one, of which the layers' names are the parts ("attn.in_proj_" and its kin are
    said with the end, "attn.qkv" without). ranked: whether tables have axes of size 1 in front. flat_stem: whether the
    stem is a matrix. head: the classifier's, where there may be one.
    """

    video: Mapping[str, str]
    text: Mapping[str, str]
    video_layer: Mapping[str, str]
    text_layer: Mapping[str, str]
    projections: tuple[str, str]
    turned: bool
    qkv: tuple[str, ...] = ()
    ranked: bool = False
    flat_stem: bool = False
    head: str = ""


def layer_names(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The names of the parts of layers with what is before them."""
    return {part: f"{prefix}.{name}" for part, name in names.items()}


# A layer of OpenAI's, in which query, key and value are the parts of attn.in_proj.
OPENAI_LAYER = {
    "attention_norm": "ln_1",
    **{f"attention/{part}": f"attn.in_proj.{part}" for part in ("query", "key", "value")},
    "attention/out": "attn.out_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}


def in_proj(prefix: str, width: int, layers: int) -> list[_tables.Fused]:
    """Query, key and value of PyTorch's attention, whose names end in an underscore and what they are."""
    parts = ("query", "key", "value")
    return [
        _tables.Fused(f"{prefix}_{end}", {f"{prefix}.{part}.{end}": width for part in parts}, layers)
        for end in ("weight", "bias")
    ]


def table(names: Names, section: Section, clip: Size3, left: tuple[str, ...]) -> _tables.Table:
    """The rules of a whole dual encoder, or of a classifier, whose positions are those of `clip`."""
    video = section["video"]
    s = TransformerSpec(**video["transformer"])
    positions, fused = _positions(names, clip, video["tubelet"], s.width)
    rules = [
        video_stem(names, video["tubelet"], s.width),
        *positions,
        *norm(f"{HERE}/stem_norm", names.video["stem_norm"], s.width),
        *norm(f"{HERE}/norm", names.video["norm"], s.width),
        *blocks(_vision.LAYERS, names.video_layer, s),
        *_vision.head(section, names.head, s.width),
    ]
    fused += _fused(names, names.video_layer, s)
    if "text" in section:
        t = TransformerSpec(**section["text"]["transformer"])
        rules += [
            *text_rules(names, section["text"], t),
            *_projection("video_projection", names.projections[0], s.width, section["embed"], names.turned),
            *_projection("text_projection", names.projections[1], t.width, section["embed"], names.turned),
            Rule("log_scale", "logit_scale", ()),
        ]
        fused += _fused(names, names.text_layer, t)
    folds = (_tables.added(f"{HERE}/cls", f"{HERE}/cls_position", (s.width,)),)
    fixed = () if names.video.get("temporal") else (_vision.no_time(s.width),)
    return _tables.Table(tuple(rules), tuple(fused), folds, fixed, left)


def _fused(names: Names, layer: Mapping[str, str], s: TransformerSpec) -> list[_tables.Fused]:
    """Query, key and value in one, wherever the layers have them so."""
    found = []
    for name in sorted({part.rsplit(".", 1)[0] for part in layer.values()} & set(names.qkv)):
        fuse = in_proj if name.endswith("in_proj") else _tables.thirds
        found += fuse(name, s.width, s.layers)
    return found


def text_rules(names: Names, text: Section, s: TransformerSpec) -> list[Rule]:
    """Rules of the text tower."""
    return [
        Rule(f"{TEXT}/words/table", names.text["words"], (text["vocab"], s.width)),
        Rule(f"{TEXT}/positions", names.text["positions"], (text["max_length"], s.width)),
        *norm(f"{TEXT}/norm", names.text["norm"], s.width),
        *blocks(f"{TEXT}/stack/layers", names.text_layer, s),
    ]


def video_stem(names: Names, tubelet: Size3, width: int) -> Rule:
    """The rule of a stem without bias; one that is a matrix has the pixels of a patch in a row, colour by colour."""
    _, height, across = tubelet

    def turn(x: np.ndarray) -> np.ndarray:
        if x.ndim != (2 if names.flat_stem else 4):
            raise ValueError(f"a stem of another kind was expected, not {x.shape}")
        return x.reshape(-1, 3, height, across).transpose(2, 3, 1, 0)[None]

    def back(x: np.ndarray) -> np.ndarray:
        kernel = x[0].transpose(3, 2, 0, 1)
        return kernel.reshape(width, -1) if names.flat_stem else kernel

    shape = (1, height, across, 3, width)
    return Rule(f"{HERE}/patch/kernel", f"{names.video['patch']}.weight", shape, 0, turn, back)


def _positions(names: Names, clip: Size3, tubelet: Size3, width: int) -> tuple[list[Rule], list[_tables.Fused]]:
    """Rules of cls and of the tables, of which that of places begins with the place of cls."""
    front = (1,) if names.ranked else ()
    places = (clip[1] // tubelet[1]) * (clip[2] // tubelet[2])
    name = names.video["spatial"]
    parts = {f"{name}.cls": 1, f"{name}.places": places}

    def rule(path: str, name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> Rule:
        there = (*axes, *shape)
        return Rule(path, name, shape, 0, lambda x: _without(x, there, shape), lambda x: x.reshape(there))

    rules = [
        rule(f"{HERE}/cls", names.video["cls"], (width,), front * 2),
        rule(f"{HERE}/cls_position", f"{name}.cls", (width,), (*front, 1)),
        rule(f"{HERE}/spatial", f"{name}.places", (places, width), front),
    ]
    if temporal := names.video.get("temporal"):
        rules.append(rule(f"{HERE}/temporal", temporal, (clip[0], width), front))
    return rules, [_tables.Fused(name, parts, 0, len(front))]


def _without(x: np.ndarray, there: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    if x.shape != there:
        raise ValueError(f"{there} was expected, not {x.shape}")
    return x.reshape(shape)


def _projection(path: str, name: str, width: int, embed: int, turned: bool) -> list[Rule]:
    if turned:
        return linear(path, name, (width,), (embed,), bias=False)
    return [Rule(f"{path}/kernel", name, (width, embed))]


def temperature(start: float, **others: Any) -> Section:
    """The section of a scale that starts from this logarithm."""
    init = round(math.exp(-start), 12)
    return {"init": init, "max_scale": MAX_SCALE, "learnable": True, **others}


def part(config: Mapping[str, Any], name: str, usual: Section, known: Collection[str]) -> Section:
    """A tower's part of config.json, with what it leaves out of the usual."""
    found = {**usual, **(config.get(name) or {})}
    doubled = config.get(f"{name}_dict") or {}
    if differing := [key for key, value in doubled.items() if key in found and found[key] != value]:
        raise ValueError(f"config.json says {', '.join(differing)} of the {name} twice, and not alike; take one out")
    check_keys(found, {*usual, *known}, f"{name} ")
    need_plain(found, _vision.PLAIN)
    return found


def check_keys(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """ValueError for a setting that is not known."""
    fine = _vision.READ | _vision.TRAINING | _vision.NOTHING | _vision.PLAIN.keys() | set(known)
    if strange := [key for key in config if key not in fine and not key.startswith("_")]:
        raise ValueError(
            f"config.json's {where}has {', '.join(f'{key} {config[key]!r}' for key in strange)}, which this family "
            "does not know; give another model's folder, or take out what changes nothing"
        )


def text_config(section: Mapping[str, Any]) -> Section:
    """What config.json says of the text tower."""
    words, t = text_of(section)
    return {
        "num_hidden_layers": t.layers,
        "hidden_size": t.width,
        "num_attention_heads": t.heads,
        "intermediate_size": t.mlp,
        "hidden_act": activation_name(t.activation),
        "layer_norm_eps": t.epsilon,
        "vocab_size": words.vocab,
        "max_position_embeddings": words.max_length,
    }


def check_counterpart(section: Mapping[str, Any], written: Mapping[str, Any], what: str) -> None:
    """ValueError that names what a section says and `written`, the section of its config.json, does not."""
    if "text" in written:
        _texts.check_counterpart(section, written, what)
    _vision.check_counterpart(_without_text(section), _without_text(written), what)


def _without_text(section: Mapping[str, Any]) -> Section:
    """What else a section says, and what it leaves unsaid of the temperature and the projections."""
    kept = {key: value for key, value in section.items() if key != "text"}
    if "temperature" not in section:
        return kept
    for name in ("video_projection", "text_projection"):
        kept[name] = {key: value for key, value in section.get(name, {}).items() if value not in (False, "none")}
    bias = section["temperature"].get("bias")  # the rest is how training keeps the scale
    return {**kept, "temperature": {"bias": bias is not None}}
