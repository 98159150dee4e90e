"""What the parameters of another stage become in this stage's model, where that is what the papers do.

A stage of longer clips needs more positions, one of videos after images kernels with an axis of time, and factorized
layers an attention over time. Each change is named in the report; what fits no rule stays for `core.tree.merge` to
report as it always did. How tables grow is said by the model: `extend_positions` and `inflate` of its video encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vidlang.core.config import call
from vidlang.core.sharding import Mesh, replicated
from vidlang.core.tree import flatten_paths, path_name
from vidlang.models import video
from vidlang.nn.layouts import GATE, factorize_params
from vidlang.nn.stems import inflate
from vidlang.ops.positions import fit_positions, resize_joint
from vidlang.ops.relative import resize_table
from vidlang.ops.tubelets import Size3
from vidlang.train import build
from vidlang.train.step import Fields, with_video

# What has a row for each word, of which a model may have some more, up to a multiple of this; and a text's positions.
WORDS, PADDED = ("text_encoder/words/table", "word_head/bias"), 128
TEXT_POSITIONS = "text_encoder/positions"
# The bias of what no tokenizer gives, where words are guessed.
NEVER = -1e4


@dataclass(frozen=True)
class Tower:
    """The video encoder of a stage's model, and how its tokens lie in the clips that its parameters were made for."""

    model: video.Model
    grid: Size3 | None


def tower(model: Mapping[str, Any], fields: Fields) -> Tower | None:
    """That of a stage's `model` section, whose batches have these fields; None for a model without one."""
    name, options = build.named(model, "model")
    section = options if name == "video" else options.get("video")
    if not isinstance(section, Mapping) or "transformer" not in section:
        return None
    encoder = call(video.Model, section, what="model.video")
    found = jax.eval_shape(with_video, dict(fields)).get("video_BTHWC")
    return Tower(encoder, None if found is None else video.grid_of(encoder, tuple(found.shape[1:4])))


def published(section: Mapping[str, Any], clip_THW: Size3) -> Tower:
    """That of weights, whose positions were made for clips of (frames, height, width)."""
    encoder = call(video.Model, section, what="video")
    return Tower(encoder, video.grid_of(encoder, clip_THW))


def carry(params: Any, target: Any, before: Tower | None, here: Tower | None) -> tuple[Any, tuple[str, ...]]:
    """(the parameters as this stage's model has them, what was changed), from arrays or shapes."""
    wanted = flatten_paths(target)
    params, changes = _fit_texts(params, wanted)
    if before is None or here is None:
        return params, tuple(changes)
    gates = [name for name in wanted if name.rsplit("/", 1)[-1] == GATE and name not in flatten_paths(params)]
    if gates:
        params = _factorized(params, gates)
        known = flatten_paths(params)
        changes += [f"{gate.removesuffix(GATE)}time_* copied from attention" for gate in gates if gate in known]
    params, copied = _image_stems(params, wanted)
    changes += copied
    grids = None if before.grid is None or here.grid is None else (before.grid, here.grid)
    places = None if grids is None else (grids[0][1:], grids[1][1:])
    params, extended = fit_positions(params, target, time=here.model.extend_positions, grids=places)
    changes += extended

    def fit(path: Sequence[Any], leaf: Any) -> Any:
        name = path_name(path)
        to = wanted.get(name)
        if to is None or tuple(to.shape) == tuple(leaf.shape):
            return leaf
        found, what = leaf, ""
        if name.endswith("/relative") and grids is not None:
            found, what = _resized(leaf, to, *grids), f"nearest in time, linear in space, from {grids[0]} to {grids[1]}"
        elif name.endswith("video_encoder/positions") and grids is not None and leaf.shape[1:] == to.shape[1:]:
            time = here.model.extend_positions
            found = _shaped(leaf, lambda table_ND: resize_joint(table_ND, *grids, time))
            what = f"{time} in time, bilinear in space, from {grids[0]} to {grids[1]}"
        elif name.endswith("patch/kernel"):
            found, what = _inflated(leaf, to, here.model.inflate), f"inflated, {here.model.inflate}"
        if found is not leaf:
            changes.append(f"{name} {tuple(leaf.shape)} -> {tuple(found.shape)}, {what}")
        return found

    return jax.tree_util.tree_map_with_path(fit, params), tuple(changes)


def carry_arrays(
    params: Any, target: Any, before: Tower | None, here: Tower | None, mesh: Mesh
) -> tuple[Any, tuple[str, ...]]:
    """`carry` of arrays; what the model has in the same shape lies on the devices as it does there."""
    changes: tuple[str, ...] = ()

    def change(params: Any) -> Any:
        nonlocal changes
        found, changes = carry(params, target, before, here)
        return found

    shapes = jax.eval_shape(change, params)
    if not changes:
        return params, ()
    wanted = flatten_paths(target)

    def layout(path: Sequence[Any], leaf: Any) -> Any:
        to = wanted.get(path_name(path))
        return to.sharding if to is not None and tuple(to.shape) == tuple(leaf.shape) else replicated(mesh)

    # One program of all processes, as every computation on arrays that lie on many devices.
    return jax.jit(change, out_shardings=jax.tree_util.tree_map_with_path(layout, shapes))(params), changes


def describe(changes: Sequence[str]) -> str:
    """The changes for the log; nothing where there are none."""
    return f"\n{len(changes)} made to fit:\n  " + "\n  ".join(changes) if changes else ""


def _factorized(params: Any, gates: Sequence[str], prefix: str = "") -> Any:
    """The parameters with an attention over time in the layers that these gates are of, and in no others."""
    if not isinstance(params, Mapping):
        return params
    if f"{prefix}{GATE}" in gates:
        return factorize_params(params)
    return {name: _factorized(value, gates, f"{prefix}{name}/") for name, value in params.items()}


def _fit_texts(params: Any, wanted: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The parameters with as many words, and as many positions in a text, as the model has, where it may differ.

    A vocabulary is padded to a number that divides well, with words that no tokenizer gives, and a text tower may be
    for shorter texts than the published one.
    """
    changes: list[str] = []

    def fit(path: Sequence[Any], leaf: Any) -> Any:
        name = path_name(path)
        to = wanted.get(name)
        if to is None or leaf.ndim == 0 or leaf.shape[1:] != to.shape[1:] or leaf.shape == to.shape:
            return leaf
        had, rows = leaf.shape[0], to.shape[0]
        if name.endswith(WORDS) and had < rows <= -(-had // PADDED) * PADDED:
            fill = NEVER if name.endswith("bias") else 0.0
            more = ((0, rows - had), *[(0, 0)] * (leaf.ndim - 1))
            found = _shaped(leaf, lambda x: jnp.pad(x, more, constant_values=fill))
            what = f"{rows - had} rows for no word"
        elif name.endswith(TEXT_POSITIONS) and rows < had:
            found, what = _shaped(leaf, lambda x: x[:rows]), "the first"
        else:
            return leaf
        changes.append(f"{name} {tuple(leaf.shape)} -> {tuple(found.shape)}, {what}")
        return found

    return jax.tree_util.tree_map_with_path(fit, params), changes


def _shaped(leaf: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """The change of an array, or of a shape."""
    return jax.eval_shape(change, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else change(leaf)


def _image_stems(params: Any, wanted: Mapping[str, Any], prefix: str = "") -> tuple[Any, list[str]]:
    """The parameters with a second stem for images, where the model wants one, as a copy of what was the only stem."""
    if not isinstance(params, Mapping):
        return params, []
    found, copied = {}, []
    for name, value in params.items():
        found[name], more = _image_stems(value, wanted, f"{prefix}{name}/")
        copied += more
    to = wanted.get(f"{prefix}image_patch/kernel")
    if to is not None and "image_patch" not in found and "kernel" in (stem := found.get("patch", {})):
        kernel = stem["kernel"]
        if tuple(kernel.shape[-4:]) == tuple(to.shape) and math.prod(kernel.shape[:-4]) == 1:
            is_shape = isinstance(kernel, jax.ShapeDtypeStruct)
            flat = jax.ShapeDtypeStruct(to.shape, kernel.dtype) if is_shape else kernel.reshape(to.shape)
            found["image_patch"] = {**stem, "kernel": flat}
            copied.append(f"{prefix}image_patch copied from patch")
    return found, copied


def _resized(tables: Any, to: Any, grid: Size3, new_grid: Size3) -> Any:
    """The tables of all layers for another grid; as they are where those are not their grids."""

    def resize(tables_LRA: jax.Array) -> jax.Array:
        return jax.vmap(lambda table_RA: resize_table(table_RA, grid, new_grid))(tables_LRA)

    if tables.ndim != 3:
        return tables
    shape = jax.eval_shape(resize, jax.ShapeDtypeStruct(tables.shape, tables.dtype))
    if tuple(shape.shape) != tuple(to.shape):
        return tables
    return shape if isinstance(tables, jax.ShapeDtypeStruct) else resize(tables)


def _inflated(kernel: Any, to: Any, how: str) -> Any:
    """A kernel of one frame, [h, w, C, D] or [1, h, w, C, D], for tubelets or for frames; any other as it is."""
    if len(to.shape) == 4 and tuple(kernel.shape) == (1, *to.shape):
        is_shape = isinstance(kernel, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(to.shape, kernel.dtype) if is_shape else kernel.reshape(to.shape)
    if len(to.shape) != 5 or tuple(kernel.shape[-4:]) != tuple(to.shape[1:]) or math.prod(kernel.shape[:-4]) != 1:
        return kernel

    def grow(kernel: jax.Array) -> jax.Array:
        return inflate(kernel.reshape(kernel.shape[-4:]), to.shape[0], how)

    return jax.eval_shape(grow, kernel) if isinstance(kernel, jax.ShapeDtypeStruct) else grow(kernel)
