"""What one transformer stack computes under some dials, as plain numbers: the widths and tokens of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vidlang.nn.layouts import GRIDDED, LAYOUTS
from vidlang.ops.pruning import kept_count


@dataclass(frozen=True)
class StackShape:
    """A stack of pre-LN blocks over a grid of tokens, layer by layer.

    width, mlp: of the parameters. widths: what each layer computes on. grid: tokens in time, height and width, and
    tokens: those that each layer sees, without cls. patch: numbers that one token is embedded from. layout: one of
    `nn.layouts`. edges: (local blocks, random blocks, tokens of a block) or None for dense attention.
    """

    width: int
    mlp: int
    widths: tuple[int, ...]
    grid: tuple[int, int, int]
    tokens: tuple[int, ...]
    patch: int
    cls: bool = False
    layout: str = "joint"
    edges: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown attention layout {self.layout!r}; there are: {', '.join(LAYOUTS)}")
        if len(self.widths) != len(self.tokens) or not self.widths:
            raise ValueError(
                f"a stack has one width and one number of tokens for each layer; found {len(self.widths)} widths and "
                f"{len(self.tokens)} numbers of tokens"
            )
        if max(self.widths) > self.width or min(self.widths) < 1:
            raise ValueError(f"widths of layers lie between 1 and the full width {self.width}; found {self.widths}")
        whole = math.prod(self.grid)
        if max(self.tokens) > whole or min(self.tokens) < 1:
            raise ValueError(f"layers see 1 to {whole} tokens of the grid {self.grid}; found {self.tokens}")
        if self.layout != "joint" and (any(tokens % self.grid[0] for tokens in self.tokens) or self.edges):
            raise ValueError(
                f"the layout {self.layout!r} has equally many tokens at each of its {self.grid[0]} times and no edges; "
                f"found {self.tokens} tokens and edges {self.edges}"
            )

    @property
    def global_tokens(self) -> int:
        """Tokens beside those of the grid."""
        return int(self.cls) * (self.grid[0] if self.layout == "frames" else 1)

    @property
    def attentions(self) -> int:
        """Attentions in a layer: two where time has one of its own."""
        return 2 if self.layout in GRIDDED else 1

    def hidden(self, width: int) -> int:
        """Hidden units of the mlp in a layer of this width."""
        return self.mlp * width // self.width

    def keys(self, tokens: int) -> int:
        """Keys of the grid that one query meets, over all attentions of a layer."""
        if self.layout != "joint":
            at_a_time = tokens // self.grid[0]
            return at_a_time + (self.grid[0] if self.layout in GRIDDED else 0)
        if self.edges is None:
            return tokens
        local, random, block = self.edges
        return min(tokens, (local + random) * block)


def tokens_per_layer(tokens: int, layers: int, keep: Sequence[tuple[int, float]] = ()) -> tuple[int, ...]:
    """Tokens without cls that each layer sees when the first sees `tokens` and `keep` drops some after given layers."""
    rates = dict(keep)
    beyond = [layer for layer in rates if not 0 <= layer < layers]
    if beyond:
        raise ValueError(f"the dial keep names layer {beyond[0]}; layers are numbered from 0 to {layers - 1}")
    found = []
    for layer in range(layers):
        found.append(tokens)
        tokens = kept_count(tokens, rates[layer]) if layer in rates else tokens
    return tuple(found)
