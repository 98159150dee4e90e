"""How a stack runs under its dials: the loops that they cut it into, and one of these loops.

Where the dials change what all following layers work on, the number of tokens or the static width, one loop ends and
the next begins over the layers that are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.nn.attention import Places
from vidlang.nn.decoder_spec import DecoderSpec
from vidlang.nn.drop_path import draw_paths
from vidlang.nn.layouts import GRIDDED
from vidlang.nn.spec import TransformerSpec
from vidlang.ops import edges as graphs
from vidlang.ops.branches import switch
from vidlang.ops.dials import Dials
from vidlang.ops.pruning import keep_best, kept_count
from vidlang.ops.widths import DrawnWidths, fit


@flax.struct.dataclass
class Stacked:
    """What a stack gives. Under static widths, tokens have that of the last layer.

    kept_BM: which tokens are left, numbered from the first that is not global; None where none was pruned. valid: under
    a drawn schedule, how many channels the last layer had; those beyond are zero.
    """

    x_BMD: jax.Array
    kept_BM: jax.Array | None = None
    valid: jax.Array | None = None


@dataclass(frozen=True)
class Segment:
    """Layers start .. stop - 1, which run as one loop; `keep` is the share of the tokens that goes on after them."""

    start: int
    stop: int
    width: int
    keep: float | None


def plan(spec: TransformerSpec, widths: tuple[int, ...], keep: tuple[tuple[int, float], ...]) -> list[Segment]:
    """The loops that the dials cut a stack into."""
    rates = dict(keep)
    for layer in rates:
        if layer >= spec.layers:
            raise ValueError(f"the dial keep prunes after layer {layer}; the layers are 0 to {spec.layers - 1}")
    ends = {spec.layers, spec.frozen_layers, *(layer + 1 for layer in rates)} - {0}
    ends |= {layer for layer in range(1, spec.layers) if widths[layer] != widths[layer - 1]}
    bounds = itertools.pairwise([0, *sorted(ends)])
    return [Segment(start, stop, widths[start], rates.get(stop - 1)) for start, stop in bounds]


@dataclass(frozen=True)
class Runner:
    """Runs segments of a stack, all with the same dials. path_key: what dropped paths are drawn from, if they are."""

    spec: TransformerSpec
    mask_BANS: jax.Array | None
    dials: Dials
    globals: int
    edge_key: jax.Array | None
    drawn: DrawnWidths | None
    times: int = 1
    places: Places | None = None
    path_key: jax.Array | None = None

    def options(self, kept_BM: jax.Array | None) -> dict[str, Any]:
        """What attention is told in a segment beside its tokens, which these are."""
        found: dict[str, Any] = {"globals": self.globals}
        if self.spec.layout in GRIDDED:
            found["times"] = self.times
        places = self.places
        if places is not None and kept_BM is not None:
            ids_BN = jnp.broadcast_to(places.ids_BN, (kept_BM.shape[0], places.ids_BN.shape[1]))
            left_BM = jnp.take_along_axis(ids_BN[:, self.globals :], kept_BM, axis=1)
            places = Places(jnp.concatenate([ids_BN[:, : self.globals], left_BM], axis=1), places.grid)
        return found if places is None else {**found, "places": places}

    def __call__(self, block: nn.Module, params: Any, before: Stacked, segment: Segment) -> Stacked:
        x_BND = fit(before.x_BMD, segment.width)
        frozen = segment.stop <= self.spec.frozen_layers
        if frozen:
            x_BND, params = jax.lax.stop_gradient((x_BND, params))
        tokens = x_BND.shape[1] - self.globals
        score_BN = None if segment.keep is None else jnp.zeros((x_BND.shape[0], tokens), jnp.float32)
        layer = self._layer(block, tokens, self.options(before.kept_BM))
        if self.drawn is None:  # the switch of drawn widths already keeps nothing but what goes into a layer
            layer = checkpointed(layer, self.spec)
        numbers = jnp.arange(segment.start, segment.stop)
        index_L = numbers if self.drawn is None else self.drawn.index_L[segment.start : segment.stop]
        xs = params, numbers, index_L

        def step(carry: Any, xs: Any) -> tuple[Any, None]:
            return layer(carry, xs), None

        carry: Any = (x_BND, score_BN)
        if self.spec.scan:
            carry, _ = jax.lax.scan(step, carry, xs)
        else:
            for i in range(segment.stop - segment.start):
                carry = layer(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        x_BND, score_BN = carry
        if segment.keep is None:
            return Stacked(x_BND, before.kept_BM)
        x_BND, kept_BM = keep_best(x_BND, score_BN, kept_count(tokens, segment.keep), globals=self.globals)
        if before.kept_BM is not None:
            kept_BM = jnp.take_along_axis(before.kept_BM, kept_BM, axis=1)
        return Stacked(x_BND, kept_BM)

    def _layer(self, block: nn.Module, tokens: int, options: dict[str, Any]) -> Callable[..., Any]:
        """The function (tokens, scores), (its parameters, its number, the index of its width) -> tokens, scores."""
        spec, edges, edge_key, drawn = self.spec, self.dials.edges, self.edge_key, self.drawn

        def layer(carry: Any, xs: Any) -> Any:
            (x_BND, score_BN), (params, number, index) = carry, xs
            graph = None
            if edges is not None and edge_key is not None:
                graph = graphs.draw(edges, jax.random.fold_in(edge_key, number), tokens)
            paths_PB = None
            if self.path_key is not None:
                paths_PB = draw_paths(self.path_key, number, spec, self.dials.rows_B, x_BND.shape[0])

            def at(width: int) -> Callable[..., Any]:
                def apply(params: Any, x_BND: jax.Array, mask_BANS: Any, graph: Any, places: Any, paths_PB: Any) -> Any:
                    found: Any = block.apply(
                        {"params": params},
                        fit(x_BND, width),
                        mask_BANS,
                        graph=graph,
                        paths_PB=paths_PB,
                        score=score_BN is not None,
                        **options | ({} if places is None else {"places": places}),
                    )
                    return fit(found[0], x_BND.shape[-1]), found[1]

                return apply

            operands = params, x_BND, self.mask_BANS, graph, options.get("places"), paths_PB
            if drawn is None:
                return at(x_BND.shape[-1])(*operands)
            return switch(index, [at(width) for width in spec.of_shares(drawn.shares)], *operands)

        return layer


def checkpointed(layer: Callable[..., Any], spec: TransformerSpec | DecoderSpec) -> Callable[..., Any]:
    """The layer, which keeps for its backward pass what `spec.remat` says."""
    if spec.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if spec.remat == "dots" else None
    # Inside a scan nothing can merge the recomputation with the original; unrolled, XLA would.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not spec.scan)
