"""LaViLa, from and to its checkpoints: a TimeSformer made of CLIP's vision tower, beside CLIP's text tower or alone.

Its layers attend over time, then over space, with one residual from before both. All norms of the vision tower have an
epsilon of 1e-6 but that behind the stem. What is read are its CLIP_OPENAI_TIMESFORMER models, BASE and LARGE, and the
classifiers made of them; those with gates over time (timesformer_gated_xattn) and with other text towers are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _clip, _video_clip
from vidlang.pretrained._clip import Names, layer_names
from vidlang.pretrained._tables import Table
from vidlang.pretrained._vision import Section

WHAT = "LaViLa"
VIDEO, TEXT = "visual.blocks.{}", "transformer.resblocks.{}"
PARTS = ("query", "key", "value")
LAYER = {
    "attention_norm": "norm1",
    **{f"attention/{part}": f"attn.qkv.{part}" for part in PARTS},
    "attention/out": "attn.proj",
    "time_attention_norm": "norm3",
    **{f"time_attention/{part}": f"timeattn.qkv.{part}" for part in PARTS},
    "time_attention/out": "timeattn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
NAMES = Names(
    video={
        "patch": "visual.patch_embed.proj",
        "cls": "visual.cls_token",
        "spatial": "visual.pos_embed",
        "temporal": "visual.temporal_embed",
        "stem_norm": "visual.ln_pre",
        "norm": "visual.norm",
    },
    text={"words": "token_embedding.weight", "positions": "positional_embedding", "norm": "ln_final"},
    video_layer=layer_names(LAYER, VIDEO),
    text_layer=layer_names(_clip.OPENAI_LAYER, TEXT),
    projections=("image_projection", "text_projection"),
    turned=False,
    qkv=(f"{VIDEO}.attn.qkv", f"{VIDEO}.timeattn.qkv", f"{TEXT}.attn.in_proj"),
    ranked=True,
    head="fc_cls",
)


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config, as `describe` gives one."""
    video = {"activation": "quick_gelu", "epsilon": 1e-6, "layout": "divided"}
    text = {"activation": "quick_gelu", "epsilon": 1e-5}
    return _video_clip.whole(dict(config), video, {"stem_epsilon": 1e-5}, text)


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config of a model with this section, as `describe` would give it of its tensors."""
    config = _video_clip.config_of(section, clip, WHAT)
    _clip.check_counterpart(section, spec(config), WHAT)
    return config


def describe(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the tensors are: their sizes."""
    return _video_clip.measure(tensors, NAMES, WHAT)


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters from the published tensors."""
    return _table(config).params(tensors)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    return _table(config).tensors(params)


def section(path: str | Path) -> Section:
    """The model's section of a checkpoint."""
    return spec(_read(path)[0])


def clip(path: str | Path) -> Size3:
    """(frames, height, width) that the positions were made for."""
    return _video_clip.clip_of(_read(path)[0])


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    config, tensors = _read(path)
    return _table(config).shapes(tensors)


def load(path: str | Path) -> Any:
    """The parameters of a checkpoint."""
    config, tensors = _read(path)
    return to_flax(tensors, config)


def _read(path: str | Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    tensors, args = _video_clip.read(Path(path))
    model = args.get("model", "")
    if isinstance(model, str) and model and "OPENAI" not in model and "fc_cls.bias" not in tensors:
        raise ValueError(f"{path} is a {model}; this family reads LaViLa's CLIP_OPENAI_TIMESFORMER models")
    return describe(tensors), tensors


def _table(config: Mapping[str, Any]) -> Table:
    return _clip.table(NAMES, spec(config), _video_clip.clip_of(config), ())
