"""The only door to Mesh and PartitionSpec: four mesh axes, one table from logical names to them, checked placement.

Arrays are described by logical names ("batch", "tokens", "embed"); RULES maps each to mesh axes. A misspelt name, or
two names on one mesh axis, would silently leave an array unsharded in raw JAX; here both raise.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vidlang.core import slices

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")
# A key of a config's mesh beside the axes.
SLICES = "slices"

# Logical name -> mesh axes. Parameters and activations have names of their own, because fsdp shards the former's
# width and the latter's batch.
RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": BATCH_AXES,
    "tokens": ("context",),
    "act_embed": (),
    "act_heads": ("tensor",),
    "act_mlp": ("tensor",),
    # parameters
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "position": (),
    "patch": (),
    "joint": (),
    "rank": (),
    "norm": (),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices from axis sizes like {"data": -1, "fsdp": 2}; one axis may be -1, absent ones are 1.

    "slices", which is no axis, says of how many slices the devices are (`core/slices.py`); TPUs say it themselves.
    devices: over these alone.
    """
    unknown = sorted(set(sizes) - {*AXES, SLICES})
    if unknown:
        raise ValueError(f"unknown mesh axis {unknown[0]!r}; the axes are {', '.join(AXES)}")
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    found = jax.devices() if devices is None else devices
    count = len(found)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise ValueError(f"mesh sizes must be positive and at most one may be -1; found {dict(sizes)}")
    fixed = math.prod(size for size in shape if size != -1)
    if -1 in shape and count % fixed == 0:
        shape[shape.index(-1)] = count // fixed
    if math.prod(shape) != count:
        raise ValueError(
            f"the mesh {dict(zip(AXES, shape, strict=True))} does not divide the {count} devices here; "
            f"choose sizes whose product is {count}, or -1 for one axis to take the rest"
        )
    # make_mesh gives Explicit axes by default, with which Linen and plain jnp code raise.
    types = (AxisType.Auto,) * len(AXES)
    parts = slices.count_slices(found, int(sizes.get(SLICES, 0)))
    if parts == 1:
        return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=devices)
    slices.check_slices(parts, shape, count)
    order = slices.across(parts, shape, found, lambda shape, group: jax.make_mesh(shape, AXES, devices=group).devices)
    return Mesh(order, AXES, axis_types=types)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Makes `mesh` the one that `constrain` and `per_batch_shard` see."""
    with jax.set_mesh(mesh):
        yield mesh


def active_mesh() -> Any | None:
    """The mesh in use (abstract), or None outside `use_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """In here, programs are made for chips that are not in this machine: "tpu" for a TPU topology."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def platform() -> str:
    """What programs are made for here: cpu, gpu or tpu. Kernels are chosen by it."""
    return _PLATFORM.get() or jax.default_backend()


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of logical names; ValueError for an unknown name or two names on one mesh axis."""
    entries: list[tuple[str, ...] | None] = []
    taken: dict[str, str] = {}
    for name in names:
        if name is None:
            entries.append(None)
            continue
        if name not in RULES:
            raise ValueError(f"unknown logical axis {name!r}; there are: {', '.join(RULES)}")
        for axis in RULES[name]:
            if axis in taken:
                raise ValueError(
                    f"logical axes {taken[axis]!r} and {name!r} both map to the mesh axis {axis!r} in {names}; "
                    "an array can use a mesh axis once"
                )
            taken[axis] = name
        entries.append(RULES[name] or None)
    return PartitionSpec(*entries)


def on_each_device(*names: str) -> bool:
    """Whether every device holds the whole of axes with these logical names."""
    mesh = active_mesh()
    return mesh is None or all(mesh.shape[axis] == 1 for name in names for axis in RULES[name])


def _check_divides(shape: tuple[int, ...], spec: PartitionSpec, sizes: Mapping[str, int], what: str) -> None:
    for dimension, entry in zip(shape, spec, strict=False):
        axes = (entry,) if isinstance(entry, str) else entry or ()  # PartitionSpec unpacks one-tuples
        ways = math.prod(sizes[axis] for axis in axes)
        if dimension % ways:
            raise ValueError(
                f"{what} of shape {shape}: {dimension} does not divide over the mesh axes {axes} ({ways} ways); "
                "change the size or the mesh"
            )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by its logical names; the names are checked with or without a mesh.

    Tokens need not divide over their devices: with a cls token, or after pruning, they are any number.
    """
    if len(names) != x.ndim:
        raise ValueError(f"constrain got {len(names)} names {names} for an array of shape {x.shape}")
    spec = partition_spec(names)
    mesh = active_mesh()
    # Inside shard_map the axes are Manual: arrays are local there and their layout is already said.
    if mesh is None or mesh.manual_axes:
        return x
    divided = partition_spec(tuple(None if name == "tokens" else name for name in names))
    _check_divides(x.shape, divided, mesh.shape, f"an activation {names}")
    return jax.lax.with_sharding_constraint(x, spec)


def tree_shardings(abstract_tree: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree whose parameters carry logical names (`nn.with_logical_partitioning`).

    Returns the tree without its boxes; leaves without names are replicated. A dimension that does not divide over
    its mesh axes is a ValueError naming the parameter.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, PartitionSpec())
        spec = partition_spec(tuple(leaf.names))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        _check_divides(leaf.value.shape, spec, mesh.shape, f"parameter {name} {leaf.names}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        sharding, abstract_tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_ways(mesh: Mesh) -> int:
    """Over how many devices a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from the own rows of every process of the mesh; those of process 0 come first, then process 1's."""
    sharding = batch_sharding(mesh)
    processes = processes_of(mesh)
    for name, array in batch.items():
        rows = array.shape[0] * processes
        if rows % batch_ways(mesh):
            raise ValueError(
                f"a batch of {rows} ({name}) does not divide over {batch_ways(mesh)} devices of the mesh axes "
                f"{BATCH_AXES}; choose a multiple"
            )
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def processes_of(mesh: Mesh) -> int:
    """How many processes the devices of a mesh belong to."""
    return len({device.process_index for device in mesh.devices.flat})


def to_host(x: Any) -> Any:
    """The whole array (or tree of them) in the memory of every process that has a part of it, as numpy."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(whole, x)))


def per_batch_shard(function: Callable[..., Any], *arrays: jax.Array, replicated: tuple[Any, ...] = ()) -> Any:
    """Runs `function(*rows, *replicated, gather=gather)` on each device's own rows of the batch.

    `gather(rows)` returns the rows of all devices, differentiably. Outputs keep the rows as their first axis.
    Without a mesh the function runs once on everything. The other mesh axes repeat the same work.
    """
    mesh = active_mesh()
    if mesh is None:
        return function(*arrays, *replicated, gather=lambda rows: rows)
    rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()

    def local(*inputs: Any) -> Any:
        return function(*inputs, gather=lambda x: jax.lax.all_gather(x, BATCH_AXES, tiled=True))

    return jax.shard_map(
        local,
        in_specs=(*[rows] * len(arrays), *[whole] * len(replicated)),
        out_specs=rows,
    )(*arrays, *replicated)
