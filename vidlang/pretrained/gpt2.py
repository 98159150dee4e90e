"""GPT-2, from and to the folders that Hugging Face has: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained._decoder_config import check_decoder, decoder_of
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
from vidlang.pretrained._safetensors import read_folder
from vidlang.pretrained._settings import check_section

# Activations by the names of config.json.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
# Masks that old files hold; where words and head are tied, the head is the word table once more.
LEFT = (r"h\.\d+\.attn\.(masked_)?bias",)
HEAD = "lm_head.weight"
NEEDED = ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")
# The part of a model that these are.
PART = "language"
TYPES = {"gpt2": "GPT-2"}


def spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `language` section of a model with this config.json."""
    need(config, NEEDED)
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise ValueError(f"GPT-2 with the activation {activation!r} is not known; there are: {', '.join(ACTIVATIONS)}")
    if config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
        raise ValueError(
            "GPT-2 whose attention is scaled by layer, or not at all, is not known here; give one with "
            "scale_attn_weights true and scale_attn_by_inverse_layer_idx false"
        )
    width = config["n_embd"]
    return {
        "layers": config["n_layer"],
        "width": width,
        "heads": config["n_head"],
        "mlp": config.get("n_inner") or 4 * width,
        "vocab": config["vocab_size"],
        "max_length": config["n_positions"],
        "norm": "layer",
        "epsilon": config.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "activation": ACTIVATIONS[activation],
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied": bool(config.get("tie_word_embeddings", True)),
    }


def config_of(section: Mapping[str, Any], clip: Any = None) -> dict[str, Any]:
    """The config.json of a model with this `language` section."""
    del clip
    s = decoder_of(section)
    names = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": s.layers,
        "n_embd": s.width,
        "n_head": s.heads,
        "n_inner": s.mlp,
        "vocab_size": s.vocab,
        "n_positions": s.max_length,
        "activation_function": names.get(s.activation, "gelu_new"),
        "layer_norm_epsilon": s.epsilon,
        "tie_word_embeddings": s.tied,
    }
    check_decoder(section, spec(config), "GPT-2")
    return config


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters of `nn.decoder.Decoder` from the published tensors."""
    s = call(DecoderSpec, spec(config), what="config.json")
    return to_params(_split(tensors, s), _rules(s), left=_left(s))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    s = call(DecoderSpec, spec(config), what="config.json")
    found = to_tensors(params, _rules(s))
    for layer in range(s.layers):
        for end in ("weight", "bias"):
            names = [f"h.{layer}.attn.c_attn.{part}.{end}" for part in "qkv"]
            found[f"h.{layer}.attn.c_attn.{end}"] = np.concatenate([found.pop(name) for name in names], axis=-1)
    return {name if name == HEAD else f"transformer.{name}": tensor for name, tensor in found.items()}


def section(path: str | Path) -> dict[str, Any]:
    """The `language` section of a folder."""
    return spec(read_config(Path(path), TYPES))


def check(path: str | Path, given: Mapping[str, Any]) -> None:
    """ValueError where this `language` section is not that of the folder."""
    check_section(given, section(path), Path(path))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    s = call(DecoderSpec, section(path), what="config.json")
    return to_shapes(_split(read_folder(path), s), _rules(s), left=_left(s))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    config = read_config(Path(path), TYPES)
    return to_flax(read_folder(path), config)


def _left(s: DecoderSpec) -> tuple[str, ...]:
    return (*LEFT, re.escape(HEAD)) if s.tied else LEFT


def _split(tensors: Mapping[str, np.ndarray], s: DecoderSpec) -> Mapping[str, np.ndarray]:
    """Queries, keys and values lie side by side in one tensor; here each has its own name."""
    tensors = without_prefix(tensors, "transformer.")
    whole = [(layer, end) for layer in range(s.layers) for end in ("weight", "bias")]
    fused = {f"h.{layer}.attn.c_attn.{end}": f"h.{layer}.attn.c_attn.{{}}.{end}" for layer, end in whole}
    names: dict[str, tuple[str, Turn]] = {name: (name, same) for name in tensors if name not in fused}
    for name, parts in fused.items():
        if name in tensors:
            names |= {
                parts.format(part): (name, functools.partial(_third, number)) for number, part in enumerate("qkv")
            }
    return Renamed(tensors, names)


def _third(number: int, x: np.ndarray) -> np.ndarray:
    size = x.shape[-1] // 3 if x.ndim else 0
    return x[..., number * size : (number + 1) * size]


def _rules(s: DecoderSpec) -> list[Rule]:
    d, a, k, f, layers = s.width, s.heads, s.head_size, s.mlp, s.layers
    rules = [
        Rule("words/table", "wte.weight", (s.vocab, d)),
        Rule("positions", "wpe.weight", (s.max_length, d)),
        Rule("norm/scale", "ln_f.weight", (d,)),
        Rule("norm/bias", "ln_f.bias", (d,)),
    ]
    if not s.tied:
        rules.append(Rule("head/kernel", HEAD, (d, s.vocab), 0, lambda x: x.T, lambda x: x.T))
    for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        rules += [
            Rule(f"layers/{ours}/scale", f"h.{{}}.{theirs}.weight", (d,), layers),
            Rule(f"layers/{ours}/bias", f"h.{{}}.{theirs}.bias", (d,), layers),
        ]
    for ours, part in (("query", "q"), ("key", "k"), ("value", "v")):
        here, there = f"layers/attention/{ours}", f"h.{{}}.attn.c_attn.{part}"
        rules += [
            Rule(f"{here}/kernel", f"{there}.weight", (d, a, k), layers, lambda x: x.reshape(d, a, k), _flat_last),
            Rule(f"{here}/bias", f"{there}.bias", (a, k), layers, lambda x: x.reshape(a, k), lambda x: x.reshape(-1)),
        ]
    out = "layers/attention/out"
    rules += [
        Rule(f"{out}/kernel", "h.{}.attn.c_proj.weight", (a, k, d), layers, lambda x: x.reshape(a, k, d), _flat_first),
        Rule(f"{out}/bias", "h.{}.attn.c_proj.bias", (d,), layers),
        Rule("layers/mlp_in/kernel", "h.{}.mlp.c_fc.weight", (d, f), layers),
        Rule("layers/mlp_in/bias", "h.{}.mlp.c_fc.bias", (f,), layers),
        Rule("layers/mlp_out/kernel", "h.{}.mlp.c_proj.weight", (f, d), layers),
        Rule("layers/mlp_out/bias", "h.{}.mlp.c_proj.bias", (d,), layers),
    ]
    return rules


def _flat_last(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], -1)


def _flat_first(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])
