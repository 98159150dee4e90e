"""SViTT and Singularity, from and to their checkpoints: towers, fusion encoder, and what judges pairs and words.

The files say nothing of the model, so that its section is read off the tensors: how many frames and how fine a grid,
off the tables of relative positions. Their BERT has one stack of layers, of which those with a cross-attention are the
fusion encoder's. A key's bias, which BEiT has not, is zero here; whatever it is, attention stays the same, so that it
is left out on the way back. The video encoder pools the mean of its tokens, as the code does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call
from vidlang.nn.cross_attention import fusion_spec
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.relative import SPECIAL
from vidlang.pretrained import _vision, beit, bert
from vidlang.pretrained._blocks import blocks, linear, norm
from vidlang.pretrained._files import read_checkpoint
from vidlang.pretrained._names import Renamed, Rule, Turn, same, to_params, to_shapes, to_tensors
from vidlang.pretrained._texts import check_tied, text_of
from vidlang.pretrained._vision import HERE, LAYERS

EPSILON = 1e-12
# BERT's heads are all this wide; BEiT's number of heads is that of its tables.
HEAD_SIZE = 64
# Where no buffer tells, images have this many patches a side: 224 pixels, 16 each.
SIDE = 14
# What was published with the models: share of the words that are masked, [MASK] of BERT's vocabulary, temperature.
MASKING = {"rate": 0.5, "mask_id": 103}
TEMPERATURE = {"init": 0.07, "min_scale": 2.0, "max_scale": 1000.0, "learnable": True}
# Classes of the settings that lie beside the state dict.
SKIP = (r"omegaconf\..*", r"typing\..*", r"easydict\..*")
INDEX = "vision_encoder.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
TABLE = INDEX.replace("_index", "_bias_table")
# Singularity's, added to the tokens of frames where it was told to.
UNUSED = "temporal_embeddings"
# Buffers, and what this BEiT has for its own training; the decoder of words is their table once more.
LEFT = (
    UNUSED,
    re.escape(INDEX).replace("\\.0\\.", r"\.\d+\."),
    r"vision_encoder\.embeddings\.mask_token",
    r"text_encoder\.embeddings\.position_ids",
    r"text_encoder\.cls\.predictions\.decoder\.(weight|bias)",
)
HEAD = "text_encoder.cls.predictions."
TIED = {
    f"{HEAD}decoder.weight": "text_encoder.embeddings.word_embeddings.weight",
    f"{HEAD}decoder.bias": f"{HEAD}bias",
}
CROSS = {
    ours.replace("attention", "cross_attention", 1): theirs.replace("attention", "crossattention", 1)
    for ours, theirs in bert.LAYER.items()
    if ours.startswith("attention")
}
KEY_BIAS = re.compile(r"vision_encoder\.encoder\.layer\.\d+\.attention\.attention\.key\.bias")


def measure(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What a config would say of the model, read off the shapes of its tensors."""
    tensors = _bare(tensors)
    vision, text = "vision_encoder.encoder.layer.", "text_encoder.encoder.layer."
    grid = _grid(tensors)
    crossed = _count(tensors, rf"{text}(\d+)\.crossattention\.self\.query\.weight")
    patch = _shape(tensors, "vision_encoder.embeddings.patch_embeddings.projection.weight", 4)
    words = _shape(tensors, "text_encoder.embeddings.word_embeddings.weight", 2)
    return {
        "frames": grid[0],
        "side": grid[1],
        "patch": patch[2],
        "vision_layers": _count(tensors, rf"{vision}(\d+)\.layernorm_before\.weight"),
        "vision_width": patch[0],
        "vision_heads": _shape(tensors, TABLE, 2)[1],
        "vision_mlp": _shape(tensors, f"{vision}0.intermediate.dense.weight", 2)[0],
        "layer_scale": int(f"{vision}0.lambda_1" in tensors),
        "vocab": words[0],
        "positions": _shape(tensors, "text_encoder.embeddings.position_embeddings.weight", 2)[0],
        "token_types": _shape(tensors, "text_encoder.embeddings.token_type_embeddings.weight", 2)[0],
        "text_layers": _count(tensors, rf"{text}(\d+)\.attention\.self\.query\.weight") - crossed,
        "fusion_layers": crossed,
        "text_width": words[1],
        "text_mlp": _shape(tensors, f"{text}0.intermediate.dense.weight", 2)[0],
        "embed": _shape(tensors, "vision_proj.weight", 2)[0],
        "words": int(f"{HEAD}bias" in tensors),
    }


def spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's section, from what `measure` gives."""
    vision = {
        "layers": config["vision_layers"],
        "width": config["vision_width"],
        "heads": config["vision_heads"],
        "mlp": config["vision_mlp"],
        "relative_positions": True,
        "layer_scale": 0.1 if config["layer_scale"] else 0.0,
        "epsilon": EPSILON,
    }
    text = {
        "vocab_size": config["vocab"],
        "hidden_size": config["text_width"],
        "num_hidden_layers": config["text_layers"],
        "num_attention_heads": max(1, config["text_width"] // HEAD_SIZE),
        "intermediate_size": config["text_mlp"],
        "max_position_embeddings": config["positions"],
        "type_vocab_size": config["token_types"],
        "layer_norm_eps": EPSILON,
    }
    return {
        "name": "fusion",
        "video": {
            "transformer": vision,
            "tubelet": (1, config["patch"], config["patch"]),
            "pool": "mean",
            "positions": "none",
            "cls": True,
            "norm_pooled": True,
        },
        **bert.spec(text),
        "embed": config["embed"],
        "video_projection": {"bias": True},
        "text_projection": {"bias": True},
        "temperature": dict(TEMPERATURE),
        "fusion": {"layers": config["fusion_layers"]},
        **({"words": dict(MASKING)} if config["words"] else {}),
    }


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters of a fusion model from the published tensors; config: of `measure`."""
    check_tied(_bare(tensors), TIED)
    if UNUSED in tensors and np.any(tensors[UNUSED]):
        raise ValueError(
            f"the checkpoint has {UNUSED} that are not zero, which this family does not add to tokens; give one that "
            "was trained with add_temporal_embed=False"
        )
    return to_params(_short(tensors, config), _rules(config), left=LEFT)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    found, text = {}, "text_encoder."
    whole = f"{text}bert." if config["words"] else text
    for name, tensor in to_tensors(params, _rules(config)).items():
        if KEY_BIAS.fullmatch(name):
            continue
        if match := re.match(r"fusion\.layer\.(\d+)\.", name):
            layer = config["text_layers"] + int(match[1])
            name = f"{text}encoder.layer.{layer}.{name.removeprefix(match[0])}"
        if name.startswith(text) and not name.startswith(HEAD):
            name = whole + name.removeprefix(text)
        found[name] = tensor
    found["temp"] = found["temp"].reshape(())
    return found


def section(path: str | Path) -> dict[str, Any]:
    """The model's section of a checkpoint."""
    return spec(measure(_read(path)))


def clip(path: str | Path) -> tuple[int, int, int]:
    """(frames, height, width) of the clips that the checkpoint was trained with."""
    config = measure(_read(path))
    size = config["side"] * config["patch"]
    return config["frames"], size, size


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    tensors = _read(path)
    config = measure(tensors)
    return to_shapes(_short(tensors, config), _rules(config), left=LEFT)


def load(path: str | Path) -> Any:
    """The parameters of a checkpoint."""
    tensors = _read(path)
    return to_flax(tensors, measure(tensors))


def _read(path: str | Path) -> Mapping[str, np.ndarray]:
    return read_checkpoint(path, skip=SKIP)[0]


def _bare(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The tensors without the name that BERT has inside of what guesses words."""
    names = {re.sub(r"^text_encoder\.bert\.", "text_encoder.", name): (name, same) for name in tensors}
    if len(names) < len(tensors):
        raise ValueError("the file has text_encoder's tensors twice, with bert in their names and without; give one")
    return Renamed(tensors, names)


def _short(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """The tensors with fusion layers counted by themselves, and a key's bias beside each query's."""
    tensors = _bare(tensors)
    names: dict[str, tuple[str, Turn]] = {}
    for name in tensors:
        match = re.match(r"text_encoder\.encoder\.layer\.(\d+)\.", name)
        if match and int(match[1]) >= config["text_layers"]:
            layer = int(match[1]) - config["text_layers"]
            names[f"fusion.layer.{layer}.{name.removeprefix(match[0])}"] = name, same
        else:
            names[name] = name, same
        if re.fullmatch(KEY_BIAS.pattern.replace("key", "query"), name):
            names[name.replace("query", "key")] = name, np.zeros_like
    return Renamed(tensors, names)


def _rules(config: Mapping[str, Any]) -> list[Rule]:
    whole = spec(config)
    tower, s = text_of(whole)
    fused = call(fusion_spec, whole["fusion"], what="fusion", text=s)
    width, embed = config["vision_width"], (config["embed"],)
    rules = _vision_rules(config, whole["video"]["transformer"])
    rules += bert.embedding_rules("text_encoder.embeddings", tower.vocab, tower.max_length, tower.token_types, s.width)
    layer = {ours: f"text_encoder.encoder.layer.{{}}.{theirs}" for ours, theirs in bert.LAYER.items()}
    rules += blocks("text_encoder/stack/layers", layer, s)
    layer = {ours: f"fusion.layer.{{}}.{theirs}" for ours, theirs in (bert.LAYER | CROSS).items()}
    rules += blocks("fusion_encoder/layers", layer, fused, read_width=width)
    rules += [
        *linear("video_projection", "vision_proj", (width,), embed),
        *linear("text_projection", "text_proj", (s.width,), embed),
        *linear("match_head", "itm_head", (s.width,), (2,)),
        Rule("log_scale", "temp", (), 0, _log_scale, _temperature),
    ]
    return rules + bert.head_rules(HEAD, tower.vocab, s) if config["words"] else rules


def _vision_rules(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> list[Rule]:
    s = call(TransformerSpec, transformer, what="video.transformer")
    there, patch, rows = "vision_encoder", config["patch"], _rows(config["frames"], config["side"])
    rules = [
        _vision.token(f"{HERE}/cls", f"{there}.embeddings.cls_token", s.width),
        *_vision.stem(f"{there}.embeddings.patch_embeddings.projection", (1, patch, patch), s.width, flat=True),
        *blocks(LAYERS, {ours: f"{there}.{theirs}" for ours, theirs in beit.LAYER.items()}, s),
        Rule(f"{LAYERS}/attention/relative", TABLE.replace(".0.", ".{}."), (rows, s.heads), s.layers),
        *norm(f"{HERE}/norm", "vision_layernorm", s.width),
        *norm(f"{HERE}/pooled_norm", f"{there}.pooler.layernorm", s.width),
    ]
    for part, number in (("attention", 1), ("mlp", 2)) if config["layer_scale"] else ():
        name = f"{there}.encoder.layer.{{}}.lambda_{number}"
        rules.append(Rule(f"{LAYERS}/{part}_scale/scale", name, (s.width,), s.layers))
    return rules


def _grid(tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(frames, patches a side) of the clips that the tables of relative positions are for."""
    offsets = _shape(tensors, TABLE, 2)[0] - SPECIAL
    if INDEX in tensors:
        tokens = _shape(tensors, INDEX, 2)[0] - 1
        sides = [side for side in range(1, math.isqrt(tokens) + 1) if tokens % (side * side) == 0]
    else:
        sides, tokens = [SIDE], 0
    for side in sides:
        frames = tokens // (side * side) or (offsets // (2 * side - 1) ** 2 + 1) // 2
        if _rows(frames, side) == offsets + SPECIAL:
            return frames, side
    other = "" if tokens else f" of {SIDE} patches a side, and without {INDEX} no other can be told; give one with it"
    raise ValueError(f"{TABLE} has {offsets} offsets, which is no number of frames of square images{other}")


def _rows(frames: int, side: int) -> int:
    return (2 * frames - 1) * (2 * side - 1) ** 2 + SPECIAL


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _shape(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"there is no tensor {name}, which every checkpoint of SViTT and Singularity with BEiT has")
    if len(shape := tuple(tensors[name].shape)) != axes:
        raise ValueError(f"the tensor {name} is {shape}; it has {axes} axes in SViTT and Singularity")
    return shape


def _log_scale(x: np.ndarray) -> np.ndarray:
    """Of float64, so that the way there and back ends where it began."""
    return -np.log(x.astype(np.float64))


def _temperature(x: np.ndarray) -> np.ndarray:
    return np.exp(-x.astype(np.float64))
