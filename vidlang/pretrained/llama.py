"""Llama and its kin (SmolLM, Mistral, Qwen2, Qwen3, Gemma 1 to 3), from and to the folders that Hugging Face has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.ops.rotary import SCALINGS
from vidlang.pretrained._decoder_config import FULL, WINDOW, llama_config
from vidlang.pretrained._names import Rule, need, read_config, to_params, to_shapes, to_tensors, without_prefix
from vidlang.pretrained._safetensors import read_folder
from vidlang.pretrained._settings import check_section

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}
# What old files hold beside the parameters; where words and head are tied, the head is the word table once more.
LEFT = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
HEAD = "lm_head.weight"
# The part of a model that these are.
PART = "language"
NEEDED = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
Section = dict[str, Any]


def _llama(config: Mapping[str, Any]) -> Section:
    return {"qkv_bias": bool(config.get("attention_bias")), "out_bias": bool(config.get("attention_bias"))}


def _mistral(config: Mapping[str, Any]) -> Section:
    # A window in every layer, so that the first one without would be behind the last.
    return _windows(config, config["num_hidden_layers"] + 1)


def _qwen2(config: Mapping[str, Any]) -> Section:
    if config.get("use_sliding_window"):
        raise ValueError("Qwen with sliding windows is not known here; give one with use_sliding_window false")
    return {"qkv_bias": True}


def _qwen3(config: Mapping[str, Any]) -> Section:
    return {**_qwen2(config), "qk_norm": True, **_llama(config)}


def _gemma(config: Mapping[str, Any]) -> Section:
    return {**_llama(config), "norm_offset": True, "embed_scale": float(config["hidden_size"]) ** 0.5}


def _gemma2(config: Mapping[str, Any], every: int = 2) -> Section:
    need(config, ("query_pre_attn_scalar",))
    if config.get("use_bidirectional_attention"):
        raise ValueError("Gemma whose tokens see those after them writes no texts; use_bidirectional_attention is true")
    return {
        **_gemma(config),
        "post_norms": True,
        "query_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "attention_cap": float(config.get("attn_logit_softcapping") or 0.0),
        "logit_cap": float(config.get("final_logit_softcapping") or 0.0),
        **_windows(config, every),
    }


def _gemma3(config: Mapping[str, Any]) -> Section:
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    base, scaling = _rotary(config, WINDOW)
    if scaling is not None:
        raise ValueError(f"Gemma 3 whose layers with a window stretch positions ({scaling}) is not known here")
    return {**_gemma2(config, every), "qk_norm": True, "local_base": base}


KINDS: dict[str, Callable[[Mapping[str, Any]], Section]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
# What transformers leaves out of config.json, because it is the family's usual.
TIED = {"gemma", "gemma2", "gemma3_text"}
ROTARY_BASE = {("gemma3_text", FULL): 1_000_000.0}


def spec(config: Mapping[str, Any]) -> Section:
    """The `language` section of a model with this config.json."""
    need(config, NEEDED)
    kind = config["model_type"]
    base, scaling = _rotary(config, FULL)
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
        "rotary_base": base,
        "rotary_scaling": scaling,
        "activation": _activation(config),
        "gated": True,
        "mlp_bias": bool(config.get("mlp_bias")),
        "tied": bool(config.get("tie_word_embeddings", kind in TIED)),
        **KINDS[kind](config),
    }


def config_of(section: Mapping[str, Any], clip: Any = None) -> Section:
    """The config.json of a model with this `language` section: of the kinds, the one that computes the same."""
    del clip
    return llama_config(section, spec, {ours: name for name, ours in reversed(ACTIVATIONS.items())})


def _activation(config: Mapping[str, Any]) -> str:
    kind = config["model_type"]
    is_gemma = kind.startswith("gemma")
    name = config.get("hidden_act") if kind == "gemma" else config.get("hidden_activation") or config.get("hidden_act")
    name = name or ("gelu_pytorch_tanh" if is_gemma else "silu")
    if name not in ACTIVATIONS:
        raise ValueError(f"{kind} with the activation {name!r} is not known; there are: {', '.join(ACTIVATIONS)}")
    # Gemma's first files say "gelu" and mean the other one.
    return "gelu_tanh" if is_gemma and name == "gelu" else ACTIVATIONS[name]


def _rotary(config: Mapping[str, Any], layers: str) -> tuple[float, Section | None]:
    """(base, scaling) of the layers of this type.

    Transformers 5 writes both into rope_parameters, for each type of layer where they differ; before, they were keys of
    config.json, and Gemma 3 had another for layers with a window, whose positions were never stretched.
    """
    kind = config["model_type"]
    found = config.get("rope_parameters")
    if found is None and layers == WINDOW:
        found = {"rope_theta": config.get("rope_local_base_freq")}
    elif found is None:
        found = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    elif isinstance(found.get(layers), Mapping):
        found = found[layers]
    if found.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1):
        raise ValueError(f"{kind} that turns a part of the channels (partial_rotary_factor) is not known here")
    base = float(found.get("rope_theta") or ROTARY_BASE.get((kind, layers), 10_000.0))
    how = found.get("rope_type", found.get("type"))
    if how in (None, "default"):
        return base, None
    return base, {"rope_type": how, **{key: found[key] for key in SCALINGS.get(how, ()) if key in found}}


def _windows(config: Mapping[str, Any], usual: int) -> Section:
    """How far local layers see, and from one layer that sees everything to the next, which is `usual` if not said."""
    every, kinds = usual, list(config.get("layer_types") or ())
    if kinds:
        every = kinds.index(FULL) + 1 if FULL in kinds else len(kinds) + 1
        if kinds != [WINDOW if (layer + 1) % every else FULL for layer in range(config["num_hidden_layers"])]:
            raise ValueError(
                f"{config['model_type']} with the layer_types {', '.join(map(str, kinds))} is not known here; every "
                f"k-th must be {FULL}, the others {WINDOW}"
            )
    window = config.get("sliding_window")
    return {"window": window, "global_every": every} if window and every > 1 else {}


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters of `nn.decoder.Decoder` from the published tensors."""
    s = call(DecoderSpec, spec(config), what="config.json")
    return to_params(without_prefix(tensors, "model."), _rules(s), left=_left(s))


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    s = call(DecoderSpec, spec(config), what="config.json")
    found = to_tensors(params, _rules(s))
    return {name if name == HEAD else f"model.{name}": tensor for name, tensor in found.items()}


def section(path: str | Path) -> Section:
    """The `language` section of a folder."""
    return spec(read_config(Path(path), KINDS))


def check(path: str | Path, given: Mapping[str, Any]) -> None:
    """ValueError where this `language` section is not that of the folder."""
    check_section(given, section(path), Path(path))


def shapes(path: str | Path) -> Any:
    """What `load` gives, as shapes; reads no numbers."""
    s = call(DecoderSpec, section(path), what="config.json")
    return to_shapes(without_prefix(read_folder(path), "model."), _rules(s), left=_left(s))


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    config = read_config(Path(path), KINDS)
    return to_flax(read_folder(path), config)


def _left(s: DecoderSpec) -> tuple[str, ...]:
    return (*LEFT, re.escape(HEAD)) if s.tied else LEFT


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
