"""BERT, from and to the folders that Hugging Face has: the text tower and, where the files have it, the word head.

The first row of the token types is added to every token, as to a text that is no pair of sentences. The pooler and what
tells whether one sentence follows another are left out: the tower's vector is the first token as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.nn.spec import TransformerSpec
from vidlang.pretrained import _place
from vidlang.pretrained._blocks import blocks, linear, norm
from vidlang.pretrained._files import read_weights
from vidlang.pretrained._names import (
    Renamed,
    Rule,
    Turn,
    need,
    read_config,
    same,
    to_params,
    to_shapes,
    to_tensors,
    without_prefix,
)
from vidlang.pretrained._texts import (
    activation_name,
    activation_of,
    check_counterpart,
    check_tied,
    need_plain,
    text_of,
)

TYPES = {"bert": "BERT"}
NEEDED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
PLAIN = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
# What is not the tower's, and the word head's copies of what it shares.
LEFT = (
    r"embeddings\.position_ids",
    r"pooler\.dense\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
    r"cls\.predictions\.decoder\.(weight|bias)",
)
PREDICTIONS = "cls.predictions."
TIED = {
    f"{PREDICTIONS}decoder.weight": "embeddings.word_embeddings.weight",
    f"{PREDICTIONS}decoder.bias": f"{PREDICTIONS}bias",
}
LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}

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
                "layers": config["num_hidden_layers"],
                "width": config["hidden_size"],
                "heads": config["num_attention_heads"],
                "mlp": config["intermediate_size"],
                "norm": "post",
                "activation": activation_of(config.get("hidden_act", "gelu"), "BERT"),
                "epsilon": config.get("layer_norm_eps", 1e-12),
            },
            "pool": "cls",
            "final_norm": False,
            "norm_embeddings": True,
            "token_types": config.get("type_vocab_size", 2),
        }
    }


def config_of(section: Mapping[str, Any], clip: Any = None) -> dict[str, Any]:
    """The config.json of a text tower with this section."""
    del clip
    tower, s = text_of(section)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": tower.vocab,
        "max_position_embeddings": tower.max_length,
        "type_vocab_size": tower.token_types,
        "num_hidden_layers": s.layers,
        "hidden_size": s.width,
        "num_attention_heads": s.heads,
        "intermediate_size": s.mlp,
        "hidden_act": activation_name(s.activation),
        "layer_norm_eps": s.epsilon,
        "pad_token_id": 0,
    }
    if not tower.token_types:
        raise ValueError("model.text.token_types is 0, and every BERT adds a row of these: publish it as distilbert")
    check_counterpart(section, spec(config), "BERT")
    return config


def architecture(params: Any) -> str:
    """Which of the real classes has these parameters."""
    return "BertForMaskedLM" if _place.HEAD in params else "BertModel"


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters text_encoder/... and, if there is a word head, word_head/... from the published tensors."""
    tensors = _short(tensors)
    check_tied(tensors, TIED)
    return to_params(tensors, _rules(spec(config), _has_head(tensors)), left=LEFT)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    has_head = _place.HEAD in params
    found = to_tensors(params, _rules(spec(config), has_head))
    whole = "bert." if has_head else ""
    return {name if name.startswith("cls.") else f"{whole}{name}": tensor for name, tensor in found.items()}


def section(path: str | Path) -> dict[str, Any]:
    """The model's section of a folder."""
    return spec(read_config(Path(path), TYPES))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    tensors = _short(read_weights(path))
    return to_shapes(tensors, _rules(section(path), _has_head(tensors)), left=LEFT)


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    config = read_config(Path(path), TYPES)
    return to_flax(read_weights(path), config)


def _has_head(tensors: Mapping[str, np.ndarray]) -> bool:
    return any(name.startswith(PREDICTIONS) for name in tensors)


def _short(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The tensors by the names of the bare model; old files call a norm's scale and bias gamma and beta."""
    tensors = without_prefix(tensors, "bert.")
    names: dict[str, tuple[str, Turn]] = {}
    for name in tensors:
        new = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", name)
        new = re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", new)
        if new in names:
            raise ValueError(f"the file has both {names[new][0]} and {name}, which are one tensor; fetch it again")
        names[new] = name, same
    return Renamed(tensors, names)


def _rules(section: Mapping[str, Any], has_head: bool) -> list[Rule]:
    tower, s = text_of(section)
    rules = [*embedding_rules("embeddings", tower.vocab, tower.max_length, tower.token_types, s.width)]
    layer = {ours: f"encoder.layer.{{}}.{theirs}" for ours, theirs in LAYER.items()}
    rules += blocks(f"{_place.TEXT}/stack/layers", layer, s)
    return rules + head_rules(PREDICTIONS, tower.vocab, s) if has_head else rules


def embedding_rules(there: str, vocab: int, max_length: int, token_types: int, width: int) -> list[Rule]:
    """Rules of what is looked up of words, positions and kinds of sentences."""
    here = _place.TEXT
    return [
        Rule(f"{here}/words/table", f"{there}.word_embeddings.weight", (vocab, width)),
        Rule(f"{here}/positions", f"{there}.position_embeddings.weight", (max_length, width)),
        Rule(f"{here}/token_types", f"{there}.token_type_embeddings.weight", (token_types, width)),
        *norm(f"{here}/embedding_norm", f"{there}.LayerNorm", width),
    ]


def head_rules(there: str, vocab: int, s: TransformerSpec) -> list[Rule]:
    """Rules of what guesses words."""
    here = _place.HEAD
    return [
        *linear(f"{here}/dense", f"{there}transform.dense", (s.width,), (s.width,)),
        *norm(f"{here}/norm", f"{there}transform.LayerNorm", s.width),
        Rule(f"{here}/bias", f"{there}bias", (vocab,)),
    ]
