"""Llama and its kin (SmolLM, Mistral, Qwen2, Qwen3, Gemma 1 to 3), from and to the folders that Hugging Face has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained._names import Rule, read_config, to_params, to_tensors, without_prefix
from vidlang.pretrained._safetensors import read_folder

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}
# What old files hold beside the parameters; of tied models, the head is the word table once more.
LEFT = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
HEAD = "lm_head.weight"
Section = dict[str, Any]


def _llama(config: Mapping[str, Any]) -> Section:
    return {"qkv_bias": bool(config.get("attention_bias")), "out_bias": bool(config.get("attention_bias"))}


def _mistral(config: Mapping[str, Any]) -> Section:
    if config.get("sliding_window"):
        raise ValueError("Mistral with a sliding window in every layer is not known here; give one with none")
    return {}


def _qwen2(config: Mapping[str, Any]) -> Section:
    if config.get("use_sliding_window"):
        raise ValueError("Qwen2 with sliding windows is not known here; give one with use_sliding_window false")
    return {"qkv_bias": True}


def _qwen3(config: Mapping[str, Any]) -> Section:
    if config.get("use_sliding_window"):
        raise ValueError("Qwen3 with sliding windows is not known here; give one with use_sliding_window false")
    return {"qk_norm": True, **_llama(config)}


def _gemma(config: Mapping[str, Any]) -> Section:
    return {"norm_offset": True, "embed_scale": float(config["hidden_size"]) ** 0.5}


def _gemma2(config: Mapping[str, Any]) -> Section:
    return {
        **_gemma(config),
        "post_norms": True,
        "query_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "attention_cap": float(config.get("attn_logit_softcapping") or 0.0),
        "logit_cap": float(config.get("final_logit_softcapping") or 0.0),
        "window": config["sliding_window"],
        "global_every": 2,
    }


def _gemma3(config: Mapping[str, Any]) -> Section:
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return {
        **_gemma2(config),
        "qk_norm": True,
        "global_every": every,
        "local_base": float(config.get("rope_local_base_freq", 10_000.0)),
    }


# What each model_type has of its own.
KINDS: dict[str, Callable[[Mapping[str, Any]], Section]] = {
    "llama": _llama,
    "smollm3": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
# What transformers leaves out of config.json, because it is the family's usual.
TIED = {"gemma", "gemma2", "gemma3_text"}


def spec(config: Mapping[str, Any]) -> Section:
    """The `language` section of a model with this config.json."""
    kind = config["model_type"]
    if kind == "smollm3":
        raise ValueError("SmolLM3 leaves rotary positions out of some layers, which is not known here; take SmolLM2")
    name = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if name not in ACTIVATIONS:
        raise ValueError(f"{kind} with the activation {name!r} is not known; there are: {', '.join(ACTIVATIONS)}")
    activation = "gelu_tanh" if kind.startswith("gemma") else ACTIVATIONS[name]
    return {
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_size": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "mlp": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "max_length": config["max_position_embeddings"],
        "norm": "rms",
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "positions": "rotary",
        "rotary_base": float(config.get("rope_theta") or 10_000.0),
        "rotary_scaling": _scaling(config),
        "activation": activation,
        "gated": True,
        "mlp_bias": bool(config.get("mlp_bias")),
        "tied": bool(config.get("tie_word_embeddings", kind in TIED)),
        **KINDS[kind](config),
    }


def _scaling(config: Mapping[str, Any]) -> Section | None:
    found = config.get("rope_scaling")
    if not found or found.get("rope_type", found.get("type")) in (None, "default"):
        return None
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters of `nn.decoder.Decoder` from the published tensors."""
    s = call(DecoderSpec, spec(config), what="config.json")
    return to_params(without_prefix(tensors, "model."), _rules(s), left=(*LEFT, *((HEAD,) if s.tied else ())))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    s = call(DecoderSpec, spec(config), what="config.json")
    found = to_tensors(params, _rules(s))
    return {name if name == HEAD else f"model.{name}": tensor for name, tensor in found.items()}


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    config = read_config(Path(path), KINDS)
    return to_flax(read_folder(path), config)


def _rules(s: DecoderSpec) -> list[Rule]:
    d, k, f, layers = s.width, s.head_size, s.mlp, s.layers
    rules = [Rule("words/table", "embed_tokens.weight", (s.vocab, d)), Rule("norm/scale", "norm.weight", (d,))]
    if not s.tied:
        rules.append(Rule("head/kernel", HEAD, (d, s.vocab), 0, _turned, _turned))
    for ours, theirs in _norm_names(s).items():
        rules.append(Rule(f"layers/{ours}/scale", f"layers.{{}}.{theirs}.weight", (d,), layers))
    for ours, theirs, heads in (("query", "q", s.heads), ("key", "k", s.kv_heads), ("value", "v", s.kv_heads)):
        here, there = f"layers/attention/{ours}", f"layers.{{}}.self_attn.{theirs}_proj"
        turn, back = _into_heads(d, heads, k)
        rules.append(Rule(f"{here}/kernel", f"{there}.weight", (d, heads, k), layers, turn, back))
        if s.qkv_bias:
            rules.append(Rule(f"{here}/bias", f"{there}.bias", (heads, k), layers, _split(heads, k), _flat))
    turn, back = _out_of_heads(d, s.heads, k)
    out = "layers.{}.self_attn.o_proj"
    rules.append(Rule("layers/attention/out/kernel", f"{out}.weight", (s.heads, k, d), layers, turn, back))
    if s.out_bias:
        rules.append(Rule("layers/attention/out/bias", f"{out}.bias", (d,), layers))
    if s.qk_norm:
        for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            rules.append(Rule(f"layers/attention/{ours}/scale", f"layers.{{}}.self_attn.{theirs}.weight", (k,), layers))
    for ours, theirs, shape in (("in", "up", (d, f)), ("gate", "gate", (d, f)), ("out", "down", (f, d))):
        here, there = f"layers/mlp_{ours}", f"layers.{{}}.mlp.{theirs}_proj"
        rules.append(Rule(f"{here}/kernel", f"{there}.weight", shape, layers, _turned, _turned))
        if s.mlp_bias:
            rules.append(Rule(f"{here}/bias", f"{there}.bias", shape[1:], layers))
    return rules


def _norm_names(s: DecoderSpec) -> dict[str, str]:
    """Gemma 2 calls the norm before the mlp otherwise, since it has one behind the attention too."""
    if not s.post_norms:
        return {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    return {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }


def _turned(x: np.ndarray) -> np.ndarray:
    return x.T


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1)


def _split(heads: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.reshape(heads, size)


def _into_heads(width: int, heads: int, size: int) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """[A K, D] -> [D, A, K] and back."""
    return lambda x: x.T.reshape(width, heads, size), lambda x: x.reshape(width, -1).T


def _out_of_heads(width: int, heads: int, size: int) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """[D, A K] -> [A, K, D] and back."""
    return lambda x: x.T.reshape(heads, size, width), lambda x: x.reshape(-1, width).T
