"""CLIP's tensors by the names that OpenAI gave them, and OpenCLIP after it: what model they are, and where they lie."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.pretrained._clip import HEAD_SIZE
from vidlang.pretrained._files import read_checkpoint

# Numbers that OpenAI's archives have beside the parameters, by which they are known.
MARKS = ("input_resolution", "context_length", "vocab_size")
LEFT = (*MARKS, "attn_mask")
# Of OpenCLIP's config, what is read; anything else that says something is another model.
CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
KNOWN = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


def read(path: Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """(config, tensors) of a folder with OpenCLIP's config, or of a file."""
    file = path
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} has {CONFIG} and no weights; they are called {' or '.join(FILES)}")
        file = found[0]
    tensors, others = read_checkpoint(file)
    if (beside := file.parent / CONFIG).is_file():
        return describe(tensors, _read_open(beside)), tensors
    if not any(mark in tensors or mark in others for mark in MARKS):
        raise ValueError(
            f"{file} is none of OpenAI's own files, and no tensor tells the activation and the heads; put the model's "
            f'{CONFIG} beside it, or {{"model_cfg": {{"quick_gelu": true}}}} for a CLIP of OpenAI\'s'
        )
    return describe(tensors, {"quick_gelu": True}), tensors


def describe(tensors: Mapping[str, np.ndarray], said: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of tensors that are named as OpenAI names them; said: OpenCLIP's model_cfg, and pixels."""
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        places, embed = tensors["visual.positional_embedding"].shape[0] - 1, tensors["visual.proj"].shape[1]
        (vocab, t_width), length = tensors["token_embedding.weight"].shape, tensors["positional_embedding"].shape[0]
        layer = "transformer.resblocks.0.mlp.c_fc.weight"
        mlps = tensors[f"visual.{layer}"].shape[0], tensors[layer].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the tensors are not those of a CLIP whose vision tower is a transformer: {error!r}; give such a file, or "
            "a Hugging Face folder"
        ) from None
    vision, words = said.get("vision_cfg") or {}, said.get("text_cfg") or {}
    side = math.isqrt(places)
    act = {"hidden_act": "quick_gelu" if said.get("quick_gelu") else "gelu", "layer_norm_eps": 1e-5}
    return {
        "model_type": "clip",
        "tensor_names": "openai",
        "architectures": ["CLIPModel"],
        "projection_dim": embed,
        "vision_config": {
            **_sizes(tensors, "visual.", width, mlps[0], width // (vision.get("head_width") or HEAD_SIZE)),
            **act,
            "image_size": side * patch,
            "patch_size": patch,
        },
        "text_config": {
            **_sizes(tensors, "", t_width, mlps[1], words.get("heads") or t_width // HEAD_SIZE),
            **act,
            "vocab_size": vocab,
            "max_position_embeddings": length,
        },
        **{f"image_{key}": said[key] for key in ("mean", "std") if said.get(key)},
    }


def _sizes(tensors: Mapping[str, np.ndarray], prefix: str, width: int, mlp: int, heads: int) -> dict[str, int]:
    pattern = re.compile(rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    layers = 1 + max(int(found[1]) for name in tensors if (found := pattern.match(name)))
    if not heads:
        raise ValueError(f"a tower of width {width} has no head of {HEAD_SIZE} channels; put {CONFIG} beside it")
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": mlp}


def _read_open(path: Path) -> dict[str, Any]:
    """OpenCLIP's config: its model_cfg, and mean and std of pixels."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        model, pixels = dict(whole["model_cfg"]), dict(whole.get("preprocess_cfg") or {})
        parts = {"model_cfg": model, "vision_cfg": dict(model.get("vision_cfg") or {})}
        parts["text_cfg"] = dict(model.get("text_cfg") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}; fetch it again") from None
    for name, part in parts.items():
        if strange := [key for key, said in part.items() if said and key not in KNOWN[name]]:
            raise ValueError(
                f"{path} has {', '.join(f'{key} {part[key]!r}' for key in strange)} in its {name}, which this family "
                "does not know; give another model"
            )
    return {**model, **{key: pixels[key] for key in ("mean", "std") if key in pixels}}
