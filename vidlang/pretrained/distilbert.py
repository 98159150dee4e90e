"""DistilBERT, from and to the folders that Hugging Face has: the text tower and, where they have it, the word head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.pretrained import _place
from vidlang.pretrained._blocks import blocks, linear, norm
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import Rule, need, read_config, to_params, to_shapes, to_tensors, without_prefix
from vidlang.pretrained._texts import (
    activation_name,
    activation_of,
    check_counterpart,
    check_tied,
    need_plain,
    text_of,
)

TYPES = {"distilbert": "DistilBERT"}
NEEDED = ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings")
# Fixed positions (sinusoidal_pos_embds) are in the files like learned ones.
PLAIN = {"pruned_heads": {}, "tie_word_embeddings": True, "tie_weights_": True, "pad_token_id": 0}
EPSILON = 1e-12
# The word head's copy of the words, and what counts positions.
LEFT = (r"vocab_projector\.weight", r"embeddings\.position_ids")
TIED = {"vocab_projector.weight": "embeddings.word_embeddings.weight"}
LAYER = {
    "attention/query": "attention.q_lin",
    "attention/key": "attention.k_lin",
    "attention/value": "attention.v_lin",
    "attention/out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "mlp_in": "ffn.lin1",
    "mlp_out": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}
HEADS = "vocab_"

place = _place.place_text


def spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's section, a text tower, of a config.json."""
    need(config, NEEDED)
    need_plain(config, PLAIN)
    return {
        "text": {
            "vocab": config["vocab_size"],
            "max_length": config["max_position_embeddings"],
            "transformer": {
                "layers": config["n_layers"],
                "width": config["dim"],
                "heads": config["n_heads"],
                "mlp": config["hidden_dim"],
                "norm": "post",
                "activation": activation_of(config.get("activation", "gelu"), "DistilBERT"),
                "epsilon": EPSILON,
            },
            "pool": "cls",
            "final_norm": False,
            "norm_embeddings": True,
            "token_types": 0,
        }
    }


def config_of(section: Mapping[str, Any], clip: Any = None) -> dict[str, Any]:
    """The config.json of a text tower with this section."""
    del clip
    tower, s = text_of(section)
    config = {
        "model_type": "distilbert",
        "architectures": ["DistilBertModel"],
        "vocab_size": tower.vocab,
        "max_position_embeddings": tower.max_length,
        "n_layers": s.layers,
        "dim": s.width,
        "n_heads": s.heads,
        "hidden_dim": s.mlp,
        "activation": activation_name(s.activation),
        "pad_token_id": 0,
        "sinusoidal_pos_embds": False,
    }
    check_counterpart(section, spec(config), "DistilBERT")
    return config


def architecture(params: Any) -> str:
    """Which of the real classes has these parameters."""
    return "DistilBertForMaskedLM" if _place.HEAD in params else "DistilBertModel"


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters text_encoder/... and, if there is a word head, word_head/... from the published tensors."""
    tensors = without_prefix(tensors, "distilbert.")
    check_tied(tensors, TIED)
    return to_params(tensors, _rules(spec(config), _has_head(tensors)), left=LEFT)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    has_head = _place.HEAD in params
    found = to_tensors(params, _rules(spec(config), has_head))
    whole = "distilbert." if has_head else ""
    return {name if name.startswith(HEADS) else f"{whole}{name}": tensor for name, tensor in found.items()}


def section(path: str | Path) -> dict[str, Any]:
    """The model's section of a folder."""
    return spec(read_config(Path(path), TYPES))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    tensors = without_prefix(read_weights(path), "distilbert.")
    return to_shapes(tensors, _rules(section(path), _has_head(tensors)), left=LEFT)


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    config = read_config(Path(path), TYPES)
    return to_flax(read_weights(path), config)


def _has_head(tensors: Mapping[str, np.ndarray]) -> bool:
    return any(name.startswith(HEADS) for name in tensors)


def _rules(section: Mapping[str, Any], has_head: bool) -> list[Rule]:
    tower, s = text_of(section)
    here = _place.TEXT
    rules = [
        Rule(f"{here}/words/table", "embeddings.word_embeddings.weight", (tower.vocab, s.width)),
        Rule(f"{here}/positions", "embeddings.position_embeddings.weight", (tower.max_length, s.width)),
        *norm(f"{here}/embedding_norm", "embeddings.LayerNorm", s.width),
    ]
    layer = {ours: f"transformer.layer.{{}}.{theirs}" for ours, theirs in LAYER.items()}
    rules += blocks(f"{here}/stack/layers", layer, s)
    if has_head:
        rules += [
            *linear(f"{_place.HEAD}/dense", "vocab_transform", (s.width,), (s.width,)),
            *norm(f"{_place.HEAD}/norm", "vocab_layer_norm", s.width),
            Rule(f"{_place.HEAD}/bias", "vocab_projector.bias", (tower.vocab,)),
        ]
    return rules
