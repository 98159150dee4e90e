"""The config.json of a language model: of the kinds that there are, the one that computes what a section says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained._settings import FREE, ROTARY

Config = dict[str, Any]
# The real classes, by kind; of kinds that compute the same, the first is written.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
FULL, WINDOW = "full_attention", "sliding_attention"


def decoder_of(section: Mapping[str, Any]) -> DecoderSpec:
    """The settings of a `language` section."""
    spec: DecoderSpec = call(DecoderSpec, section, what="model.language")
    return spec


def differing(here: DecoderSpec, there: DecoderSpec) -> list[str]:
    """What two decoders compute otherwise, in words."""
    silent = {*FREE, *(ROTARY if here.positions == there.positions == "learned" else ())}
    if not here.window and not there.window:
        silent |= {"global_every", "local_base"}
    elif min(here.global_every, here.layers + 1) == min(there.global_every, there.layers + 1):
        silent |= {"global_every"}  # no layer of either sees everything
    return [
        f"language.{field.name} is {mine!r}, not {theirs!r}"
        for field in dataclasses.fields(DecoderSpec)
        if (mine := getattr(here, field.name)) != (theirs := getattr(there, field.name)) and field.name not in silent
    ]


def check_decoder(section: Mapping[str, Any], written: Mapping[str, Any], family: str) -> None:
    """ValueError where a section says what `written`, that of the config.json made from it, does not."""
    if problems := differing(decoder_of(section), decoder_of(written)):
        raise ValueError(f"no {family} computes this: {'; '.join(problems)}, in the nearest config.json")


def llama_config(section: Mapping[str, Any], spec: Callable[[Config], Config], names: Mapping[str, str]) -> Config:
    """The config.json of a model of Llama's kin; spec: of such a config, names: theirs of our activations."""
    s = decoder_of(section)
    if s.activation not in names:
        raise ValueError(f"language.activation is {s.activation!r}; Llama and its kin have {', '.join(names)}")
    configs = [_candidate(kind, s, names[s.activation]) for kind in CLASSES]
    found = min(configs, key=lambda config: len(differing(s, decoder_of(spec(config)))))
    check_decoder(section, spec(found), "model of Llama's kin")
    return found


def _candidate(kind: str, s: DecoderSpec, activation: str) -> Config:
    """What is nearest to a section among the models of a kind; old forms of keys, which all versions read."""
    config: Config = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "num_hidden_layers": s.layers,
        "hidden_size": s.width,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_size,
        "intermediate_size": s.mlp,
        "vocab_size": s.vocab,
        "max_position_embeddings": s.max_length,
        "rms_norm_eps": s.epsilon,
        "rope_theta": s.rotary_base,
        "rope_scaling": None if s.rotary_scaling is None else dict(s.rotary_scaling),
        "tie_word_embeddings": s.tied,
        "hidden_act": activation,
        "attention_bias": s.out_bias,
    }
    if kind == "llama":
        config["mlp_bias"] = s.mlp_bias
    if kind.startswith("gemma"):
        config["hidden_activation"] = activation
    if kind in ("gemma2", "gemma3_text"):
        config |= {
            "query_pre_attn_scalar": _scalar(s.query_scale or s.head_size**-0.5),
            "attn_logit_softcapping": s.attention_cap or None,
            "final_logit_softcapping": s.logit_cap or None,
        }
    if kind == "gemma3_text":
        config |= {"rope_local_base_freq": s.local_base or s.rotary_base, "sliding_window_pattern": s.global_every}
    if kind in ("gemma2", "gemma3_text") and s.window:
        config["layer_types"] = [WINDOW if s.is_local(layer) else FULL for layer in range(s.layers)]
    if kind in ("mistral", "gemma2", "gemma3_text"):
        config["sliding_window"] = s.window or None
    if kind.startswith("qwen"):
        config["use_sliding_window"] = False
    return config


def _scalar(query_scale: float) -> float:
    """The number whose inverse root it is; nearly always a whole one."""
    found = query_scale**-2
    return round(found) if abs(found - round(found)) < 1e-6 * found else found
