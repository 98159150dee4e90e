"""All settings of a stack of transformer blocks, checked, with what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from vidlang.nn.layers import ACTIVATIONS
from vidlang.nn.layouts import GRIDDED, LAYOUTS
from vidlang.ops.attention import IMPLEMENTATIONS
from vidlang.ops.widths import schedule, share_width

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
# What the backward pass finds in memory: everything, the outputs of linear maps, or only each layer's input.
REMAT = ("none", "dots", "full")
NORMS = ("pre", "post")


@dataclass(frozen=True)
class TransformerSpec:
    """All that makes one stack of blocks; a config's `transformer` section has these keys.

    dtype: what blocks compute in (parameters, softmax and norms stay float32). remat: "none" keeps every activation
    for the backward pass, "dots" the outputs of linear maps, "full" only the layers' inputs. scan: one compiled loop
    instead of L copies of the layer. attention: one of `ops.attention.IMPLEMENTATIONS`. groups: heads and hidden units
    lie in this many groups, of which a narrower layer takes the first of each; with as many groups as the mesh's axis
    "tensor" has devices, narrow layers move nothing between these. frozen_layers: so many of the first layers, and all
    that comes before them, get no gradient, and keep nothing for the backward pass. schedule: of a model that was cut
    out of a wider one, the width of each layer (`width` is the widest), and full_width: what it was cut from.
    layout: how attention is laid out over space and time, one of `layouts.LAYOUTS`. relative_positions: whether each
    layer has a bias for every offset in space and time (BEiT, SViTT). Only a video encoder has these two. adapter: the
    bottleneck of an MLP adapter behind each mlp, lora_rank and lora_scale: of low-rank updates of each linear map; 0
    for none.

    What published models differ in: norm, before each branch ("pre") or after each sum ("post": BERT, DistilBERT);
    activation, of the mlp, and epsilon, of all norms; layer_scale, at which the factors of each branch's channels start
    (BEiT), 0 for none. drop_path: in training, the share of rows that leave out a branch of the last layer; it rises
    to that linearly, from 0 in the first.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    dtype: str = "bfloat16"
    remat: str = "none"
    scan: bool = True
    causal: bool = False
    attention: str = "auto"
    groups: int = 1
    frozen_layers: int = 0
    schedule: tuple[int, ...] = ()
    full_width: int = 0
    layout: str = "joint"
    relative_positions: bool = False
    adapter: int = 0
    lora_rank: int = 0
    lora_scale: float = 1.0
    norm: str = "pre"
    activation: str = "gelu"
    epsilon: float = 1e-6
    layer_scale: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"transformer.{name} is {value!r}; it must be a positive integer")
        if self.width % self.heads:
            raise ValueError(
                f"transformer.width {self.width} does not divide into {self.heads} heads; change one of them"
            )
        for name in ("heads", "mlp"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"transformer.{name} {getattr(self, name)} does not divide into {self.groups} groups; change one"
                )
        frozen = self.frozen_layers
        if isinstance(frozen, bool) or not isinstance(frozen, int) or not 0 <= frozen <= self.layers:
            raise ValueError(f"transformer.frozen_layers is {frozen!r}; it is a number from 0 to {self.layers}")
        for name in ("adapter", "lora_rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"transformer.{name} is {value!r}; it must be a whole number, 0 for none")
        if self.schedule:
            object.__setattr__(self, "schedule", self.widths(self.schedule))
        choices = {"dtype": DTYPES, "remat": REMAT, "attention": IMPLEMENTATIONS, "layout": LAYOUTS}
        for name, known in (choices | {"norm": NORMS, "activation": ACTIVATIONS}).items():
            if getattr(self, name) not in known:
                raise ValueError(f"transformer.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        if self.layout in GRIDDED and (self.relative_positions or self.causal):
            what = "relative_positions" if self.relative_positions else "causal"
            raise ValueError(f"transformer.{what} is for the layouts 'joint' and 'frames'; found {self.layout!r}")
        self._check_branches()

    def _check_branches(self) -> None:
        if self.norm == "post" and self.layout in GRIDDED:
            raise ValueError(
                f"transformer.norm 'post' has one attention a layer, and the layout {self.layout!r} two; take 'pre'"
            )
        if not self.epsilon > 0:
            raise ValueError(f"transformer.epsilon is {self.epsilon!r}; it must be a positive number, as 1e-6")
        if not self.layer_scale >= 0:
            raise ValueError(f"transformer.layer_scale is {self.layer_scale!r}; it is a number above 0, or 0 for none")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"transformer.drop_path is {self.drop_path!r}; it is a share of the rows, in [0, 1)")
        if self.drop_path and self.layers == 1:
            raise ValueError("transformer.drop_path rises from 0 in the first layer, and this stack has one; set it 0")

    @property
    def compute_dtype(self) -> Any:
        """The jnp dtype that `dtype` names."""
        return DTYPES[self.dtype]

    @property
    def lora(self) -> tuple[int, float]:
        """What each linear map takes of it."""
        return self.lora_rank, self.lora_scale

    @property
    def head_size(self) -> int:
        """Channels of a head, at every width."""
        return self.width // self.heads

    def at(self, width: int, layers: int) -> TransformerSpec:
        """A narrower stack of blocks like these."""
        sizes = {name: getattr(self, name) * width // self.width for name in ("heads", "mlp", "adapter")}
        whole: dict[str, Any] = {"frozen_layers": 0, "schedule": (), "drop_path": 0.0}  # what only a whole stack has
        return dataclasses.replace(self, layers=layers, width=width, **whole, **sizes)

    def cut(self, widths: Any) -> TransformerSpec:
        """The stack of a stand-alone model that is this one at these widths."""
        found = self.widths(widths)
        small = dataclasses.replace(
            self.at(max(found), self.layers), full_width=self.full_width or self.width, drop_path=self.drop_path
        )
        return small if len(set(found)) == 1 else dataclasses.replace(small, schedule=found)

    def of_shares(self, shares: Sequence[float]) -> tuple[int, ...]:
        """The widths that shares of the full one are."""
        return tuple(share_width(share, width=self.width, head_size=self.head_size) for share in shares)

    def widths(self, widths: Any) -> tuple[int, ...]:
        """The width of each layer, from a preset's name or one number a layer; checked against this stack."""
        found = schedule(widths, layers=self.layers, width=self.width, head_size=self.head_size)
        for d in found:
            heads = d // self.head_size
            if heads % self.groups or self.mlp * d % (self.width * self.groups):
                raise ValueError(
                    f"the width {d} has {heads} heads and {self.mlp * d / self.width:g} hidden units, which do not "
                    f"divide into transformer.groups = {self.groups}; choose other widths or fewer groups"
                )
        return found
