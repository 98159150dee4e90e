"""A stack of pre-LN transformer blocks whose L layers are one stacked pytree [L, ...], whatever the dials say.

The parameters are the same whether the layers run as one scanned loop (one compiled layer, whatever L) or unrolled,
and whatever is kept or recomputed for the backward pass. Where the dials change what all following layers work on, the
number of tokens or the static width, one loop ends and the next begins over the layers that are left.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.nn.adapters import Adapter
from vidlang.nn.attention import Places, SelfAttention
from vidlang.nn.layers import KERNEL_INIT, LayerNorm, Linear, parameter
from vidlang.nn.layouts import GATE, GRIDDED, LAYOUTS, SPACE, TIME, TIME_INITS, mix
from vidlang.ops import edges as graphs
from vidlang.ops.attention import IMPLEMENTATIONS
from vidlang.ops.branches import switch
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.pruning import keep_best, kept_count
from vidlang.ops.relative import table_rows
from vidlang.ops.widths import DrawnWidths, WidthSampler, fit, schedule, share_width

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
# What the backward pass finds in memory: everything, the outputs of linear maps, or only each layer's input.
REMAT = ("none", "dots", "full")


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
        choices = {"dtype": tuple(DTYPES), "remat": REMAT, "attention": IMPLEMENTATIONS, "layout": LAYOUTS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"transformer.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        if self.layout in GRIDDED and (self.relative_positions or self.causal):
            what = "relative_positions" if self.relative_positions else "causal"
            raise ValueError(f"transformer.{what} is for the layouts 'joint' and 'frames'; found {self.layout!r}")

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
        return dataclasses.replace(self, layers=layers, width=width, frozen_layers=0, schedule=(), **sizes)

    def cut(self, widths: Any) -> TransformerSpec:
        """The stack of a stand-alone model that is this one at these widths."""
        found = self.widths(widths)
        small = dataclasses.replace(self.at(max(found), self.layers), full_width=self.full_width or self.width)
        return small if len(set(found)) == 1 else dataclasses.replace(small, schedule=found)

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


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with the exact GELU; all at the width of its input.

    Layouts with an attention over time put both in the place of the one.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, mask_BANS: jax.Array | None = None, **options: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        """(tokens, how much cls attends to each, if `options` of SelfAttention ask for that)."""
        spec, dtype, width = self.spec, self.spec.compute_dtype, x_BND.shape[-1]
        score_BN = None
        if spec.layout in GRIDDED:
            along = {"times": options["times"], "globals": options.get("globals", 0)}
            gate = functools.partial(parameter, self, GATE, nn.initializers.zeros, (), ())
            x_BND = mix(spec.layout, x_BND, lambda name, x, axis: self._attend(name, x, along=axis, **along)[0], gate)
        else:
            y_BND, score_BN = self._attend(SPACE, x_BND, mask_BANS, **options)
            x_BND = x_BND + y_BND
        y_BND = LayerNorm(spec.width, dtype, name="mlp_norm")(x_BND)
        how: dict[str, Any] = {"dtype": dtype, "groups": spec.groups, "lora": spec.lora}
        grow = Linear((spec.width,), (spec.mlp,), ("embed", "mlp"), name="mlp_in", **how)
        h_BNF = grow(y_BND, take=(spec.mlp * width // spec.width,))
        h_BNF = nn.gelu(constrain(h_BNF, "batch", "tokens", "act_mlp"), approximate=False)
        shrink = Linear((spec.mlp,), (spec.width,), ("mlp", "embed"), name="mlp_out", **how)
        y_BND = shrink(h_BNF, take=(width,))
        if spec.adapter:
            y_BND = Adapter(spec.width, spec.adapter, dtype, name="adapter")(y_BND)
        return x_BND + constrain(y_BND, "batch", "tokens", "act_embed"), score_BN

    def _attend(self, name: str, x_BND: jax.Array, *mask: jax.Array | None, **options: Any) -> Any:
        """Norm and attention, with the parameters of this name."""
        spec, dtype = self.spec, self.spec.compute_dtype
        inits = TIME_INITS[spec.layout] if name == TIME else (KERNEL_INIT, KERNEL_INIT)
        y_BND = LayerNorm(spec.width, dtype, name=f"{name}_norm")(x_BND)
        attention = SelfAttention(
            spec.width, spec.heads, dtype, spec.causal, spec.attention, spec.groups, *inits, spec.lora, name=name
        )
        return attention(y_BND, *mask, **options)


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


class Stack(nn.Module):
    """L blocks after one another; their parameters are one tree "layers" with a leading axis of that name.

    Of a model with a schedule, each run of layers of one width has its own tree, "layers_0" and so on.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self,
        x_BND: jax.Array,
        mask_BANS: jax.Array | None = None,
        *,
        dials: Dials = OFF,
        globals: int = 0,
        train: bool = False,
        times: int | None = None,
        places: Places | None = None,
    ) -> Stacked:
        """`globals` tokens in front are cls: they are never pruned, and see and are seen whatever the edges.

        times: the frames that the tokens after them lie in, for all layouts but joint. places: where all tokens stand,
        for relative positions.
        """
        spec = self.spec
        if x_BND.shape[-1] != spec.width:
            raise ValueError(f"tokens have width {x_BND.shape[-1]}; transformer.width is {spec.width}")
        _check_places(spec, times, places)
        drawn, widths = self._widths(dials, train)
        run = Runner(spec, mask_BANS, dials, globals, self._edge_key(dials, train), drawn, times or 1, places)
        # No parent: a block is a pure function of its slice of the parameters, not a submodule.
        blocks = {start: Block(spec.at(width, layers), parent=None) for start, layers, width in _runs(spec)}
        trees = {start: self._declare(block, start, x_BND, run) for start, block in blocks.items()}
        stacked = Stacked(x_BND.astype(spec.compute_dtype))
        for segment in plan(spec, widths, dials.keep):
            first = max(start for start in trees if start <= segment.start)
            rows = slice(segment.start - first, segment.stop - first)
            params = jax.tree.map(lambda leaf, rows=rows: leaf[rows], trees[first])
            stacked = run(blocks[first], params, stacked, segment)
        if drawn is None:
            return stacked
        widths_W = jnp.asarray(
            [share_width(share, width=spec.width, head_size=spec.head_size) for share in drawn.shares]
        )
        return Stacked(stacked.x_BMD, stacked.kept_BM, valid=widths_W[drawn.index_L[-1]])

    def _declare(self, block: Block, start: int, x_BND: jax.Array, run: Runner) -> Any:
        """The stacked parameters of a run of layers."""
        name = f"layers_{start}" if self.spec.schedule else "layers"
        if run.places is not None and self.has_variable("params", name):
            known = nn.unbox(self.get_variable("params", name))["attention"]["relative"].shape[1]
            if known != table_rows(grid := run.places.grid):
                raise ValueError(
                    f"tokens of a grid {grid} (time, rows, columns) need {table_rows(grid)} relative positions; these "
                    f"parameters have {known}. Give clips of the size they were trained on"
                )
        return self.param(name, _init_layers, block, (*x_BND.shape[:-1], block.spec.width), run.options(None))

    def _widths(self, dials: Dials, train: bool) -> tuple[DrawnWidths | None, tuple[int, ...]]:
        """(the schedule as data, where it is that; the static width of each layer)."""
        spec, widths = self.spec, dials.widths
        full = spec.schedule or (spec.width,) * spec.layers
        if spec.schedule and widths is not None:
            raise ValueError("this model was cut out at a schedule of widths; it has no dial widths any more")
        if isinstance(widths, WidthSampler):
            if not train:
                return None, full
            if not self.has_rng("widths"):
                raise ValueError("the dial widths draws a schedule: call with rngs={'widths': key}")
            widths = widths(self.make_rng("widths"), spec.layers)
        if isinstance(widths, DrawnWidths):
            if widths.index_L.shape != (spec.layers,):
                raise ValueError(
                    f"a drawn schedule has one index a layer, {spec.layers}; found the shape {widths.index_L.shape}"
                )
            return widths, full
        return None, full if widths is None else spec.widths(widths)

    def _edge_key(self, dials: Dials, train: bool) -> jax.Array | None:
        """Where graphs are drawn from: anew in each step, or always the same."""
        if dials.edges is None:
            return None
        if dials.edges.redraw == "never" or (dials.edges.redraw == "train" and not train):
            return jax.random.key(0)
        if not self.has_rng("edges"):
            raise ValueError("the dial edges draws a graph: call with rngs={'edges': key}")
        return self.make_rng("edges")


@dataclass(frozen=True)
class Runner:
    """Runs segments of a stack, all with the same dials."""

    spec: TransformerSpec
    mask_BANS: jax.Array | None
    dials: Dials
    globals: int
    edge_key: jax.Array | None
    drawn: DrawnWidths | None
    times: int = 1
    places: Places | None = None

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

    def __call__(self, block: Block, params: Any, before: Stacked, segment: Segment) -> Stacked:
        x_BND = fit(before.x_BMD, segment.width)
        frozen = segment.stop <= self.spec.frozen_layers
        if frozen:
            x_BND, params = jax.lax.stop_gradient((x_BND, params))
        tokens = x_BND.shape[1] - self.globals
        score_BN = None if segment.keep is None else jnp.zeros((x_BND.shape[0], tokens), jnp.float32)
        layer = _checkpointed(self._layer(block, tokens, self.options(before.kept_BM)), self.spec)
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

    def _layer(self, block: Block, tokens: int, options: dict[str, Any]) -> Callable[..., Any]:
        """The function (tokens, scores), (its parameters, its number, the index of its width) -> tokens, scores."""
        spec, edges, edge_key, drawn = self.spec, self.dials.edges, self.edge_key, self.drawn

        def layer(carry: Any, xs: Any) -> Any:
            (x_BND, score_BN), (params, number, index) = carry, xs
            graph = None
            if edges is not None and edge_key is not None:
                graph = graphs.draw(edges, jax.random.fold_in(edge_key, number), tokens)

            def at(width: int) -> Callable[..., Any]:
                def apply(params: Any, x_BND: jax.Array, mask_BANS: Any, graph: Any, places: Any) -> Any:
                    found: Any = block.apply(
                        {"params": params},
                        fit(x_BND, width),
                        mask_BANS,
                        graph=graph,
                        score=score_BN is not None,
                        **options | ({} if places is None else {"places": places}),
                    )
                    return fit(found[0], x_BND.shape[-1]), found[1]

                return apply

            operands = params, x_BND, self.mask_BANS, graph, options.get("places")
            if drawn is None:
                return at(x_BND.shape[-1])(*operands)
            branches = [at(share_width(share, width=spec.width, head_size=spec.head_size)) for share in drawn.shares]
            return switch(index, branches, *operands)

        return layer


def _check_places(spec: TransformerSpec, times: int | None, places: Places | None) -> None:
    if (spec.layout == "joint") != (times is None):
        raise ValueError(f"transformer.layout is {spec.layout!r}, which is for the frames of a video encoder only")
    if spec.relative_positions != (places is not None):
        raise ValueError(
            f"transformer.relative_positions is {spec.relative_positions}, and where the tokens stand in a video is "
            f"{'not known' if places is None else 'given'}; it is for video encoders only"
        )


def _runs(spec: TransformerSpec) -> list[tuple[int, int, int]]:
    """(first layer, number, width) of the runs of layers whose parameters have one shape."""
    if not spec.schedule:
        return [(0, spec.layers, spec.width)]
    found, start = [], 0
    for width, run in itertools.groupby(spec.schedule):
        found.append((start, layers := len(list(run)), width))
        start += layers
    return found


def _init_layers(key: jax.Array, block: Block, shape_BND: tuple[int, ...], options: dict[str, Any]) -> Any:
    """The parameters of L independent blocks, stacked; each box of logical names gains "layers" in front."""

    def init(key: jax.Array) -> Any:
        return block.init(key, jnp.zeros(shape_BND, jnp.float32), **options)["params"]

    # jit drops the forward pass that Linen's init runs: only the parameters are asked for.
    stacked = jax.jit(jax.vmap(init))(jax.random.split(key, block.spec.layers))
    return jax.tree.map(
        lambda box: box.replace(names=("layers", *box.names)),
        stacked,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )


def _checkpointed(layer: Callable[..., jax.Array], spec: TransformerSpec) -> Callable[..., jax.Array]:
    if spec.remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if spec.remat == "dots" else None
    # Inside a scan nothing can merge the recomputation with the original; unrolled, XLA would.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not spec.scan)
