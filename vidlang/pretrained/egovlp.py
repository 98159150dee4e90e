"""EgoVLP's checkpoints, and Frozen in Time's, whose model it is: a dual encoder with DistilBERT, from and to.

A checkpoint tells nothing of the model but by its tensors: sizes are read off them, heads are of 64 channels, as in all
that was published, and what no tensor shows is as in their code. The position of cls is a part of cls here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _vision, distilbert
from vidlang.pretrained._blocks import blocks, linear, norm
from vidlang.pretrained._files import read_checkpoint, read_weights
from vidlang.pretrained._names import Rule, need
from vidlang.pretrained._tables import Table, added, thirds
from vidlang.pretrained._texts import text_of
from vidlang.pretrained._vision import HERE, Section

# What a checkpoint holds beside its weights: the settings of the run, an object of their code.
SKIP = (r"parse_config\w*\.ConfigParser",)
HEAD_SIZE = 64
NEEDED = ("width", "layers", "mlp", "patch", "clip", "text", "embed")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEMPERATURE = {"init": 0.05, "max_scale": 100.0, "learnable": False}
VIDEO, TEXT = "video_model", "text_model"
QKV, TIME_QKV = f"{VIDEO}.blocks.{{}}.attn.qkv", f"{VIDEO}.blocks.{{}}.timeattn.qkv"
LAYER = {
    "attention_norm": f"{VIDEO}.blocks.{{}}.norm1",
    **{f"attention/{part}": f"{QKV}.{part}" for part in ("query", "key", "value")},
    "attention/out": f"{VIDEO}.blocks.{{}}.attn.proj",
    "time_attention_norm": f"{VIDEO}.blocks.{{}}.norm3",
    **{f"time_attention/{part}": f"{TIME_QKV}.{part}" for part in ("query", "key", "value")},
    "time_attention/out": f"{VIDEO}.blocks.{{}}.timeattn.proj",
    "mlp_norm": f"{VIDEO}.blocks.{{}}.norm2",
    "mlp_in": f"{VIDEO}.blocks.{{}}.mlp.fc1",
    "mlp_out": f"{VIDEO}.blocks.{{}}.mlp.fc2",
}
# What counts the positions of a text.
LEFT = (rf"{TEXT}\.embeddings\.position_ids",)


def describe(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The config of a model with these tensors: its sizes, and those of its DistilBERT as config.json calls them."""
    try:
        width, _, *patch = tensors[f"{VIDEO}.patch_embed.proj.weight"].shape
        places, frames = (tensors[f"{VIDEO}.{name}"].shape[1] for name in ("pos_embed", "temporal_embed"))
        vocab, dim = tensors[f"{TEXT}.embeddings.word_embeddings.weight"].shape
        sizes = {
            "mlp": tensors[f"{VIDEO}.blocks.0.mlp.fc1.weight"].shape[0],
            "embed": tensors["vid_proj.0.weight"].shape[0],
        }
        text = {
            "hidden_dim": tensors[f"{TEXT}.transformer.layer.0.ffn.lin1.weight"].shape[0],
            "max_position_embeddings": tensors[f"{TEXT}.embeddings.position_embeddings.weight"].shape[0],
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"the tensors are not those of EgoVLP's dual encoder: {error!r}; give such a file") from None
    side = math.isqrt(places - 1)
    if side * side != places - 1 or width % HEAD_SIZE or dim % HEAD_SIZE:
        raise ValueError(
            f"towers of width {width} and {dim} with {places - 1} places are of no known size: heads have {HEAD_SIZE} "
            "channels and frames are square in EgoVLP; give a published file"
        )
    text |= {"vocab_size": vocab, "dim": dim, "n_layers": _count(tensors, TEXT), "n_heads": dim // HEAD_SIZE}
    clip = [frames, side * patch[0], side * patch[-1]]
    return {"width": width, "layers": _count(tensors, VIDEO), **sizes, "patch": list(patch), "clip": clip, "text": text}


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config, which `describe` gives."""
    need(config, NEEDED)
    mean, std = IMAGENET
    width = config["width"]
    stack = {
        "layers": config["layers"],
        "width": width,
        "heads": width // HEAD_SIZE,
        "mlp": config["mlp"],
        "layout": "divided",
        "activation": "gelu",
        "epsilon": 1e-6,
    }
    return {
        "name": "dual_encoder",
        "video": {"transformer": stack, "tubelet": (1, *config["patch"]), "pool": "cls", "mean": mean, "std": std},
        **distilbert.spec(config["text"]),
        "embed": config["embed"],
        "video_projection": {"bias": True},
        "text_projection": {"bias": True, "activation": "relu"},
        "temperature": dict(TEMPERATURE),
    }


def config_for(section: Mapping[str, Any], clip: Size3) -> dict[str, Any]:
    """The config that `from_flax` takes, of a model with this section whose positions are for such clips."""
    tower, s = _vision.of_section(section, "EgoVLP")
    text = distilbert.config_of(section)
    config = {
        "width": s.width,
        "layers": s.layers,
        "mlp": s.mlp,
        "patch": list(tower.tubelet[1:]),
        "clip": list(clip),
        "text": {key: text[key] for key in distilbert.NEEDED},
        "embed": section.get("embed"),
    }
    # What texts compute, distilbert has compared.
    written = {key: value for key, value in spec(config).items() if key != "text"}
    _vision.check_counterpart({key: value for key, value in section.items() if key != "text"}, written, "EgoVLP")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(tensors)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    return _table(config).tensors(params)


def section(path: str | Path) -> Section:
    """The model's section of a checkpoint."""
    return spec(describe(_read(path)))


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    frames, height, width = describe(_read(path))["clip"]
    return frames, height, width


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    tensors = _read(path)
    return _table(describe(tensors)).shapes(tensors)


def load(path: str | Path) -> Any:
    """The parameters of a checkpoint."""
    tensors = _read(path)
    return to_flax(tensors, describe(tensors))


def _read(path: str | Path) -> Mapping[str, np.ndarray]:
    return read_weights(path) if Path(path).is_dir() else read_checkpoint(path, skip=SKIP)[0]


def _count(tensors: Mapping[str, np.ndarray], tower: str) -> int:
    """How many layers a tower has."""
    layer = rf"{VIDEO}\.blocks\.(\d+)\..*" if tower == VIDEO else rf"{TEXT}\.transformer\.layer\.(\d+)\..*"
    return 1 + max(int(found[1]) for name in tensors if (found := re.fullmatch(layer, name)))


def _table(config: Mapping[str, Any]) -> Table:
    """The rules of all of the model."""
    whole = spec(config)
    tubelet, s = whole["video"]["tubelet"], TransformerSpec(**whole["video"]["transformer"])
    frames, height, width = config["clip"]
    places = (height // tubelet[1]) * (width // tubelet[2])
    positions, fused = _vision.cls_and_places(f"{VIDEO}.pos_embed", f"{HERE}/spatial", places, s.width)
    rules = [
        _vision.token(f"{HERE}/cls", f"{VIDEO}.cls_token", s.width),
        *_vision.stem(f"{VIDEO}.patch_embed.proj", tubelet, s.width, flat=True),
        *positions,
        _vision.rows(f"{HERE}/temporal", f"{VIDEO}.temporal_embed", frames, s.width),
        *_vision.layers(LAYER, s, {})[0],
        *norm(f"{HERE}/norm", f"{VIDEO}.norm", s.width),
        *_text_rules(whole),
        *linear("video_projection", "vid_proj.0", (s.width,), (whole["embed"],)),
        *linear("text_projection", "txt_proj.1", (whole["text"]["transformer"]["width"],), (whole["embed"],)),
    ]
    fused += thirds(QKV, s.width, s.layers) + thirds(TIME_QKV, s.width, s.layers)
    return Table(tuple(rules), tuple(fused), (added(f"{HERE}/cls", f"{HERE}/cls_position", (s.width,)),), left=LEFT)


def _text_rules(section: Section) -> list[Rule]:
    """Those of DistilBERT, under its name in the whole model."""
    tower, s = text_of(section)
    layer = {ours: f"{TEXT}.transformer.layer.{{}}.{theirs}" for ours, theirs in distilbert.LAYER.items()}
    return [
        Rule("text_encoder/words/table", f"{TEXT}.embeddings.word_embeddings.weight", (tower.vocab, s.width)),
        Rule("text_encoder/positions", f"{TEXT}.embeddings.position_embeddings.weight", (tower.max_length, s.width)),
        *norm("text_encoder/embedding_norm", f"{TEXT}.embeddings.LayerNorm", s.width),
        *blocks("text_encoder/stack/layers", layer, s),
    ]
