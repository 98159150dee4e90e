"""A stack of transformer blocks whose L layers are one stacked pytree [L, ...], whatever the dials say.

The parameters are the same whether the layers run as one scanned loop (one compiled layer, whatever L) or unrolled,
and whatever is kept or recomputed for the backward pass. How layers run under the dials is in `segments`.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain, on_each_device
from vidlang.nn.adapters import Adapter
from vidlang.nn.attention import Places, SelfAttention
from vidlang.nn.drop_path import branches, drop
from vidlang.nn.layers import ACTIVATIONS, GROUPED, KERNEL_INIT, LayerNorm, LayerScale, Linear, parameter
from vidlang.nn.layouts import CLS_BY_FRAME, GATE, GRIDDED, MLP, SPACE, TIME, TIME_INITS, attend_by_frame, mix
from vidlang.nn.segments import Runner, Segment, Stacked, plan
from vidlang.nn.slicing import cut_leaf, is_box
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.dials import OFF, Dials
from vidlang.ops.relative import table_rows
from vidlang.ops.widths import DrawnWidths, WidthSampler


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); all at the width of its input.

    With spec.norm "post" it is norm(x + attention(x)), then norm(x + mlp(x)), of the same parameters. Layouts with an
    attention over time put both attentions in the place of the one.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, mask_BANS: jax.Array | None = None, *, paths_PB: jax.Array | None = None, **options: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        """(tokens, how much cls attends to each, if `options` of SelfAttention ask for that).

        paths_PB: what each of the block's `drop_path.branches` is multiplied by in each row.
        """
        spec, score_BN = self.spec, None
        if spec.layout in GRIDDED:
            along = {"times": options["times"], "globals": options.get("globals", 0)}
            gate = functools.partial(parameter, self, GATE, nn.initializers.zeros, (), ())

            def attend(name: str, x_BND: jax.Array, axis: str) -> jax.Array:
                def plain(x_BND: jax.Array, **options: Any) -> jax.Array:
                    y_BND: jax.Array = self._attend(name, x_BND, **options)[0]
                    return y_BND

                if spec.layout == CLS_BY_FRAME:
                    y_BND = attend_by_frame(x_BND, plain, axis, **along)
                else:
                    y_BND = plain(x_BND, along=axis, **along)
                return self._branch(name, y_BND, paths_PB)

            x_BND = mix(spec.layout, x_BND, attend, gate)
        else:
            y_BND, score_BN = self._attend(SPACE, x_BND, mask_BANS, **options)
            x_BND = self._join(SPACE, x_BND, self._branch(SPACE, y_BND, paths_PB))
        return self._join(MLP, x_BND, self._branch(MLP, self._mlp(x_BND), paths_PB)), score_BN

    def _attend(self, name: str, x_BND: jax.Array, *mask: jax.Array | None, **options: Any) -> Any:
        """Norm and attention, with the parameters of this name."""
        spec = self.spec
        inits = TIME_INITS[spec.layout] if name == TIME else (KERNEL_INIT, KERNEL_INIT)
        y_BND = self._enter(name, x_BND)
        attention = SelfAttention(
            spec.width,
            spec.heads,
            spec.compute_dtype,
            spec.causal,
            spec.attention,
            spec.groups,
            *inits,
            spec.lora,
            name=name,
        )
        return attention(y_BND, *mask, **options)

    def _mlp(self, x_BND: jax.Array) -> jax.Array:
        spec, dtype, width = self.spec, self.spec.compute_dtype, x_BND.shape[-1]
        y_BND = self._enter(MLP, x_BND)
        how: dict[str, Any] = {"dtype": dtype, "groups": spec.groups, "lora": spec.lora}
        grow = Linear((spec.width,), (spec.mlp,), ("embed", "mlp"), name="mlp_in", **how)
        h_BNF = grow(y_BND, take=(spec.mlp * width // spec.width,))
        h_BNF = ACTIVATIONS[spec.activation](constrain(h_BNF, "batch", "tokens", "act_mlp"))
        shrink = Linear((spec.mlp,), (spec.width,), ("mlp", "embed"), name="mlp_out", **how)
        y_BND = shrink(h_BNF, take=(width,))
        if spec.adapter:
            y_BND = Adapter(spec.width, spec.adapter, dtype, name="adapter")(y_BND)
        return constrain(y_BND, "batch", "tokens", "act_embed")

    def _enter(self, name: str, x_BND: jax.Array) -> jax.Array:
        return x_BND if self.spec.norm == "post" else self._norm(name)(x_BND)

    def _join(self, name: str, x_BND: jax.Array, y_BND: jax.Array) -> jax.Array:
        x_BND = x_BND + y_BND
        return self._norm(name)(x_BND) if self.spec.norm == "post" else x_BND

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.spec.width, self.spec.compute_dtype, self.spec.epsilon, name=f"{name}_norm")

    def _branch(self, name: str, y_BND: jax.Array, paths_PB: jax.Array | None) -> jax.Array:
        """What a branch adds to its input, after its scale, in the rows that do not drop it."""
        spec, known = self.spec, branches(self.spec.layout)
        if spec.layer_scale:
            y_BND = LayerScale(spec.width, spec.layer_scale, name=f"{name}_scale")(y_BND)
        return y_BND if paths_PB is None or name not in known else drop(y_BND, paths_PB[known.index(name)])


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
        keys = self._edge_key(dials, train), self._path_key(train)
        run = Runner(spec, mask_BANS, dials, globals, keys[0], drawn, times or 1, places, keys[1])
        # No parent: a block is a pure function of its slice of the parameters, not a submodule.
        blocks = {start: Block(spec.at(width, layers), parent=None) for start, layers, width in _runs(spec)}
        trees = {start: self._declare(block, start, x_BND, run) for start, block in blocks.items()}
        stacked = Stacked(x_BND.astype(spec.compute_dtype))
        for segment in plan(spec, widths, dials.keep):
            first = max(start for start in trees if start <= segment.start)
            rows = slice(segment.start - first, segment.stop - first)
            params = jax.tree.map(lambda leaf, rows=rows: leaf[rows], trees[first])
            block = blocks[first]
            if segment.width < block.spec.width and on_each_device("embed", *GROUPED):
                block, params = _narrow(block, params, stacked, segment, run)
            stacked = run(block, params, stacked, segment)
        if drawn is None:
            return stacked
        widths_W = jnp.asarray(spec.of_shares(drawn.shares))
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
        return declare_layers(self, name, block, (*x_BND.shape[:-1], block.spec.width), run.options(None))

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

    def _path_key(self, train: bool) -> jax.Array | None:
        """Where dropped paths are drawn from, in training."""
        rate = self.spec.drop_path
        if not rate or not train:
            return None
        if not self.has_rng("dropout"):
            raise ValueError(f"transformer.drop_path is {rate}, which draws paths: call with rngs={{'dropout': key}}")
        return self.make_rng("dropout")


def _narrow(block: Block, params: Any, before: Stacked, segment: Segment, run: Runner) -> tuple[Block, Any]:
    """The blocks of a segment at its static width, and their part of the parameters, cut once and not in each layer.

    In the layers' loop, each gradient would be filled up with zeros by itself. Parameters that lie on several devices
    are better cut there all the same: they are gathered for that, and then one layer at a time is.
    """
    spec = block.spec
    narrow = Block(spec.at(segment.width, segment.stop - segment.start), parent=None)
    x_BND = jnp.zeros((*before.x_BMD.shape[:-1], segment.width), before.x_BMD.dtype)
    options = run.options(before.kept_BM)
    boxed = jax.eval_shape(lambda: narrow.init(jax.random.key(0), x_BND, **options)["params"])
    cut = functools.partial(cut_leaf, groups=spec.groups)
    return narrow, jax.tree.map(lambda box, leaf: cut(leaf, box), boxed, params, is_leaf=is_box)


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


def declare_layers(
    module: nn.Module, name: str, block: Any, shape_BND: tuple[int, ...], options: dict[str, Any]
) -> Any:
    """The stacked parameters of a module's L blocks, under a name of the module's own.

    Those that are there are taken as they are. Linen would trace the making of new ones in each call, and with it a
    block, to compare shapes; all but the number of layers the blocks compare for themselves when they run.
    """
    if not module.has_variable("params", name):
        return module.param(name, _init_layers, block, shape_BND, options)
    params = nn.unbox(module.get_variable("params", name))
    for leaf in jax.tree.leaves(params):
        if leaf.shape[:1] != (block.spec.layers,):
            raise ValueError(
                f"{'/'.join((*module.path, name))} holds an array of the shape {leaf.shape} where the model has "
                f"{block.spec.layers} layers; these parameters are another model's"
            )
    return params


def _init_layers(key: jax.Array, block: Any, shape_BND: tuple[int, ...], options: dict[str, Any]) -> Any:
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
