"""All settings of a language model, checked; with what GPT-2, Llama, Qwen and Gemma differ in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidlang.nn.layers import ACTIVATIONS
from vidlang.nn.spec import DTYPES, REMAT
from vidlang.ops.attention import IMPLEMENTATIONS
from vidlang.ops.rotary import check_scaling

NORMS = ("layer", "rms")
POSITIONS = ("learned", "rotary")


@dataclass(frozen=True)
class DecoderSpec:
    """All that makes one decoder; a config's `language` section has these keys. As it is, it is Llama's.

    layers, width, heads, mlp, dtype, remat, scan and attention are those of TransformerSpec. vocab: number of token
    ids. max_length: tokens of a prompt and what follows it; of learned positions there are so many. kv_heads: heads of
    keys and values, each shared by heads / kv_heads of the queries; 0 for as many. head_size: 0 for width / heads.

    norm: "layer" (GPT-2) or "rms"; norm_offset: scales are 1 + what is stored (Gemma). positions: "learned" or
    "rotary", turned at the speeds that rotary_base gives, slowed by rotary_scaling (`ops.rotary`). gated: the mlp is
    activation(gate(x)) * in(x), else activation(in(x)). qkv_bias, out_bias, mlp_bias: which linear maps have one. tied:
    the head is the word table. qk_norm: queries and keys are normalised (Qwen3, Gemma 3). embed_scale: factor on the
    words. post_norms: what a branch adds is normalised too (Gemma 2). query_scale: factor on queries, 0 for
    head_size ** -0.5. logit_cap, attention_cap: c * tanh(x / c) of logits, 0 for none. window: how many tokens, itself
    included, a token of a local layer sees; of every `global_every` layers the last is not local. local_base: the
    rotary base of local layers, 0 for the same.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    vocab: int
    max_length: int
    kv_heads: int = 0
    head_size: int = 0
    dtype: str = "bfloat16"
    remat: str = "none"
    scan: bool = True
    attention: str = "auto"
    norm: str = "rms"
    norm_offset: bool = False
    epsilon: float = 1e-6
    positions: str = "rotary"
    rotary_base: float = 10_000.0
    rotary_scaling: Mapping[str, Any] | None = None
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    qk_norm: bool = False
    embed_scale: float = 1.0
    post_norms: bool = False
    query_scale: float = 0.0
    logit_cap: float = 0.0
    attention_cap: float = 0.0
    window: int = 0
    global_every: int = 1
    local_base: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp", "vocab", "max_length", "global_every"):
            _whole(name, getattr(self, name), 1)
        for name in ("kv_heads", "head_size", "window"):
            _whole(name, getattr(self, name), 0)
        if not self.head_size and self.width % self.heads:
            raise ValueError(
                f"language.width {self.width} does not divide into {self.heads} heads; change one, or set head_size"
            )
        object.__setattr__(self, "head_size", self.head_size or self.width // self.heads)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"language.heads {self.heads} do not share {self.kv_heads} kv_heads evenly; change one of them"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions turn pairs of channels; language.head_size is {self.head_size}, odd")
        choices = {"dtype": DTYPES, "remat": REMAT, "attention": IMPLEMENTATIONS, "norm": NORMS}
        for name, known in (choices | {"positions": POSITIONS, "activation": ACTIVATIONS}).items():
            if getattr(self, name) not in known:
                raise ValueError(f"language.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        for name, example in {"epsilon": 1e-6, "rotary_base": 10_000.0, "embed_scale": 1.0}.items():
            if not (_is_number(value := getattr(self, name)) and value > 0):
                raise ValueError(f"language.{name} is {value!r}; it must be a positive number, as {example}")
        for name in ("query_scale", "logit_cap", "attention_cap", "local_base"):
            if not (_is_number(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"language.{name} is {value!r}; it is a number above 0, or 0 for none")
        if self.norm == "layer" and self.norm_offset:
            raise ValueError("language.norm_offset is for norm='rms'; leave it out")
        scaling = self.rotary_scaling
        if scaling is not None:
            check_scaling(scaling)
            # Hashable, as everything else of a spec.
            object.__setattr__(self, "rotary_scaling", _Frozen(scaling))
        if self.window and self.global_every == 1:
            raise ValueError(
                f"language.window is {self.window}, and global_every=1 makes no layer local; say how many layers there "
                "are from one that sees everything to the next, as global_every=2"
            )

    @property
    def compute_dtype(self) -> Any:
        """The jnp dtype that `dtype` names."""
        return DTYPES[self.dtype]

    def is_local(self, layer: int) -> bool:
        """Whether the tokens of this layer see a window only."""
        return bool(self.window) and (layer + 1) % self.global_every != 0


class _Frozen(dict[str, Any]):
    """A mapping that a hashable spec may hold; nothing changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"language.{name} is {value!r}; it must be a whole number from {least} on")
