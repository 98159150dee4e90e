"""AVION, from and to its checkpoints: CLIP's towers, the first over space and time at once, or that under a classifier.

Its code passes CLIP's activation to nobody, so that both towers have the exact GELU, and its vision tower's epsilon is
not CLIP's. Checkpoints differ by options of training, which tensors show: stems that are matrices (use_fast_conv1), and
layers named as in flash attention (use_flash_attn).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.ops.tubelets import Size3
from vidlang.pretrained import _clip, _video_clip
from vidlang.pretrained._clip import Names, layer_names
from vidlang.pretrained._tables import Table
from vidlang.pretrained._vision import Section

WHAT = "AVION"
VIDEO, TEXT = "visual.transformer.resblocks.{}", "textual.transformer.resblocks.{}"
NAMES = Names(
    video={
        "patch": "visual.conv1",
        "cls": "visual.class_embedding",
        "spatial": "visual.positional_embedding",
        "temporal": "visual.temporal_embedding",
        "stem_norm": "visual.ln_pre",
        "norm": "visual.ln_post",
    },
    text={
        "words": "textual.token_embedding.weight",
        "positions": "textual.positional_embedding",
        "norm": "textual.ln_final",
    },
    video_layer=layer_names(_clip.OPENAI_LAYER, VIDEO),
    text_layer=layer_names(_clip.OPENAI_LAYER, TEXT),
    projections=("visual.image_projection", "textual.text_projection"),
    turned=False,
    qkv=(f"{VIDEO}.attn.in_proj", f"{TEXT}.attn.in_proj", f"{VIDEO}.attn.Wqkv"),
    head="fc_cls",
)
# A layer of the vision tower with flash attention; the text tower never has it.
FLASH_LAYER = {
    **_clip.OPENAI_LAYER,
    **{f"attention/{part}": f"attn.Wqkv.{part}" for part in ("query", "key", "value")},
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


def spec(config: Mapping[str, Any]) -> Section:
    """The model's section of a config, as `describe` gives one."""
    video, text = ({"activation": "gelu", "epsilon": epsilon} for epsilon in (1e-6, 1e-5))
    return _video_clip.whole(dict(config), video, {}, text)


def config_of(section: Mapping[str, Any], clip: Size3 | None = None) -> dict[str, Any]:
    """The config of a model with this section, as `describe` would give it of plain tensors."""
    config = {**_video_clip.config_of(section, clip, WHAT), "fast_conv1": False, "flash": False}
    _clip.check_counterpart(section, spec(config), WHAT)
    return config


def describe(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the tensors are: sizes, and by which options they were made."""
    flash = f"{VIDEO.format(0)}.attn.Wqkv.weight" in tensors
    fast = "visual.conv1.weight" in tensors and tensors["visual.conv1.weight"].ndim == 2
    measured = _video_clip.measure(tensors, _names({"flash": flash, "frames": 2}), WHAT)
    return {**measured, "fast_conv1": fast, "flash": flash}


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
    if args.get("use_bidirectional_lm"):
        raise ValueError(
            f"{path} was trained with use_bidirectional_lm, by which texts attend to their padding; this family reads "
            "causal ones"
        )
    return describe(tensors), tensors


def _names(config: Mapping[str, Any]) -> Names:
    """The names of a checkpoint by its options; one of single frames has no positions in time."""
    names = dataclasses.replace(NAMES, flat_stem=bool(config.get("fast_conv1")))
    if config.get("flash"):
        names = dataclasses.replace(names, video_layer=layer_names(FLASH_LAYER, VIDEO))
    if config["frames"] == 1:
        names = dataclasses.replace(names, video={**names.video, "temporal": ""})
    return names


def _table(config: Mapping[str, Any]) -> Table:
    return _clip.table(_names(config), spec(config), _video_clip.clip_of(config), ())
