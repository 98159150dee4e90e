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
        name, names = path_name(path), getattr(box, "names", ())
        shape = box.value.shape if names else box.shape
        leaf = flat[RUN.sub("layers", name)]
        if run := RUN.search(name):
            leaf = leaf[int(run[1]) : int(run[1]) + shape[0]]
        for axis, size in enumerate(shape):
            in_groups = bool(names) and names[axis] in GROUPED
            leaf = prefix(leaf, axis, size, groups if in_groups else 1)
        return leaf

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    return small, jax.tree_util.tree_map_with_path(cut, boxed["params"], is_leaf=is_box)


def _zeros(inputs: Sequence[Any]) -> list[jax.Array]:
    return [jax.numpy.zeros(x.shape, x.dtype) for x in inputs]
