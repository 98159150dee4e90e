"""GPT-2, from and to the folders that Hugging Face has: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.pretrained._names import Rule, read_config, to_params, to_tensors, without_prefix
from vidlang.pretrained._safetensors import read_folder

# Activations by the names of config.json.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
# Masks that old files hold, and the head, which is the word table.
LEFT = (r"h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight")


def spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `language` section of a model with this config.json."""
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise ValueError(f"GPT-2 with the activation {activation!r} is not known; there are: {', '.join(ACTIVATIONS)}")
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("reorder_and_upcast_attn"):
        raise ValueError("GPT-2 with attention scaled by layer is not known here; give a plain one")
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
        "tied": True,
    }


def to_flax(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Any:
    """The parameters of `nn.decoder.Decoder` from the published tensors."""
    fused = _Split(without_prefix(tensors, "transformer."), config["n_layer"])
    return to_params(fused, _rules(config), left=LEFT)


def from_flax(params: Any, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors from the parameters."""
    found = to_tensors(params, _rules(config))
    for layer in range(config["n_layer"]):
        for end in ("weight", "bias"):
            names = [f"h.{layer}.attn.c_attn.{part}.{end}" for part in "qkv"]
            found[f"h.{layer}.attn.c_attn.{end}"] = np.concatenate([found.pop(name) for name in names], axis=-1)
    return {f"transformer.{name}": tensor for name, tensor in found.items()}


def load(path: str | Path) -> Any:
    """The parameters of a folder."""
    config = read_config(Path(path), {"gpt2": None})
    return to_flax(read_folder(path), config)


class _Split(Mapping[str, np.ndarray]):
    """Queries, keys and values lie side by side in one tensor; here each has its own name."""

    def __init__(self, tensors: Mapping[str, np.ndarray], layers: int) -> None:
        self._tensors = tensors
        whole = {f"h.{layer}.attn.c_attn.{end}" for layer in range(layers) for end in ("weight", "bias")}
        parts = {f"{name[:-len(end)]}{part}.{end}": (name, i) for name in whole if name in tensors
                 for end in (name.rsplit(".", 1)[1],) for i, part in enumerate("qkv")}  # fmt: skip
        self._names: dict[str, tuple[str, int]] = {
            **{name: (name, -1) for name in tensors if name not in whole},
            **parts,
        }

    def __getitem__(self, name: str) -> np.ndarray:
        whole, part = self._names[name]
        tensor = self._tensors[whole]
        if part < 0:
            return tensor
        size = tensor.shape[-1] // 3
        return tensor[..., part * size : (part + 1) * size]

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _rules(config: Mapping[str, Any]) -> list[Rule]:
    s = call(DecoderSpec, spec(config), what="config.json")
    d, a, k, f, layers = s.width, s.heads, s.head_size, s.mlp, s.layers
    rules = [
        Rule("words/table", "wte.weight", (s.vocab, d)),
        Rule("positions", "wpe.weight", (s.max_length, d)),
        Rule("norm/scale", "ln_f.weight", (d,)),
        Rule("norm/bias", "ln_f.bias", (d,)),
    ]
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
