"""Cuts a stand-alone small model out of a trained one: the big one's outputs at those widths, in fewer bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from vidlang.core.tree import flatten_paths, path_name
from vidlang.nn.layers import GROUPED
from vidlang.ops.widths import prefix

# A run of layers of a small model, "stack/layers_3/mlp_in/kernel", is part of the big one's "stack/layers/...".
RUN = re.compile(r"(?<![^/])layers_(\d+)(?=/)")


def slice_params(model: Any, params: Any, widths: str | Sequence[int], *inputs: Any) -> tuple[nn.Module, Any]:
    """(the small model, its parameters): the part of `params` that `model` uses when its dial says `widths`.

    `widths` is a preset's name or one width a layer; the model has a method `at` that gives the small one. `inputs` are
    arrays, or their shapes, that it is called with. No other part of the model than its video tower gets narrower.
    """
    small = model.at(widths)
    boxed = jax.eval_shape(lambda key: small.init({"params": key}, *_zeros(inputs), train=False), jax.random.key(0))
    flat, groups = flatten_paths(params), model.video_spec.groups

    def cut(path: Sequence[Any], box: Any) -> Any:
        name = path_name(path)
        leaf = flat[RUN.sub("layers", name)]
        if run := RUN.search(name):
            leaf = leaf[int(run[1]) : int(run[1]) + (box.value if is_box(box) else box).shape[0]]
        return cut_leaf(leaf, box, groups)

    return small, jax.tree_util.tree_map_with_path(cut, boxed["params"], is_leaf=is_box)


def cut_leaf(leaf: jax.Array, box: Any, groups: int) -> jax.Array:
    """The first entries of each axis, as many as the parameter in `box` has; of heads and hidden units, of each group.

    `box` is a shape in its logical names, or one that has none. Axes of `leaf` in front of its own stay whole.
    """
    names, shape = (box.names, box.value.shape) if is_box(box) else ((None,) * box.ndim, box.shape)
    for axis, (name, size) in enumerate(zip(names, shape, strict=True), start=leaf.ndim - len(shape)):
        leaf = prefix(leaf, axis, size, groups if name in GROUPED else 1)
    return leaf


def is_box(leaf: Any) -> bool:
    """Whether it is a parameter with the logical names of its axes."""
    return isinstance(leaf, nn.LogicallyPartitioned)


def _zeros(inputs: Sequence[Any]) -> list[jax.Array]:
    return [jax.numpy.zeros(x.shape, x.dtype) for x in inputs]
