"""Batches beyond memory: a step that works on parts of its batch, one after another.

"cached": the gradients of the whole batch, exactly, whatever the objective compares across it (GradCache). All parts
are encoded, keeping nothing for a backward pass; the head and the objective see everything at once and give the
gradient of each encoding; then each part is encoded again, to hand that gradient on to the parameters. It costs one
more forward pass, and the memory of one part beside the encodings. What rows draw for themselves, like masks, they
draw alike in any part (`ops.draws`), so the number of parts changes nothing.

"averaged": each part is a batch of its own, and gradients are the mean over parts. That is the usual accumulation,
without the second pass: right where the loss is a mean over rows of equal weight, wrong where rows are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlang.core.sharding import constrain
from vidlang.ops.dials import Dials

HOW = ("cached", "averaged")
# (loss, scalars), gradients
Graded = tuple[tuple[jax.Array, dict[str, jax.Array]], Any]


@dataclass(frozen=True)
class Micro:
    """In how many parts a step takes its batch, and how their gradients become one."""

    batches: int = 1
    how: str = "cached"

    def __post_init__(self) -> None:
        if isinstance(self.batches, bool) or not isinstance(self.batches, int) or self.batches < 1:
            raise ValueError(f"micro.batches is {self.batches!r}; it is the number of parts of a batch, from 1 on")
        if self.how not in HOW:
            raise ValueError(f"micro.how is {self.how!r}; it is one of {', '.join(HOW)}")


WHOLE = Micro()


@dataclass(frozen=True)
class Task:
    """What a step computes: `join` makes parameters of the trained ones, `loss` is of (outputs, batch)."""

    model: nn.Module
    join: Callable[[Any], Any]
    loss: Callable[[Any, Mapping[str, Any]], tuple[jax.Array, dict[str, jax.Array]]]
    inputs: Callable[[Mapping[str, Any]], list[Any]]
    dials: Dials
    rngs: dict[str, jax.Array]

    def apply(self, trained: Any, *inputs: Any, method: str = "__call__", rows_B: jax.Array | None = None) -> Any:
        """A method of the model in training."""
        return self.model.apply(
            {"params": self.join(trained)},
            *inputs,
            train=True,
            dials=dataclasses.replace(self.dials, rows_B=rows_B),
            rngs=self.rngs,
            method=method,
        )


def gradients(task: Task, trained: Any, batch: Mapping[str, Any], micro: Micro) -> Graded:
    """((loss, scalars), gradients) of a step."""
    if micro.batches == 1:

        def loss(trained: Any) -> Any:
            return task.loss(task.apply(trained, *task.inputs(batch)), batch)

        return jax.value_and_grad(loss, has_aux=True)(trained)
    rows = next(iter(batch.values())).shape[0]
    if rows % micro.batches:
        raise ValueError(
            f"a batch of {rows} does not divide into {micro.batches} parts; change batch_size or micro.batches"
        )
    return (_cached if micro.how == "cached" else _averaged)(task, trained, batch, micro.batches)


def _cached(task: Task, trained: Any, batch: Mapping[str, Any], parts: int) -> Graded:
    # A model without `encode` gives nothing but rows, which the objective alone compares.
    encode, has_head = ("encode", True) if hasattr(task.model, "encode") else ("__call__", False)
    inputs = task.inputs(batch)
    rows_B = jnp.arange(inputs[0].shape[0])
    xs = split((inputs, rows_B), parts)

    def encoded(trained: Any, part: Any) -> list[Any]:
        inputs, rows_B = part
        return jax.tree.leaves(task.apply(trained, *inputs, method=encode, rows_B=rows_B))

    shapes = jax.eval_shape(lambda: task.apply(trained, *inputs, method=encode, rows_B=rows_B))
    tree, is_float = jax.tree.structure(shapes), [_is_float(leaf) for leaf in jax.tree.leaves(shapes)]
    for leaf in jax.tree.leaves(shapes):
        if not leaf.ndim or leaf.shape[0] != rows_B.shape[0]:
            raise ValueError(
                f"micro.how 'cached' joins what the model {type(task.model).__module__} gives for each row, and it "
                f"gives a {leaf.dtype} of shape {leaf.shape} for {rows_B.shape[0]} rows; set micro.how='averaged'"
            )

    def head_loss(trained: Any, floats: list[Any], others: list[Any]) -> Any:
        whole = jax.tree.unflatten(tree, _interleave(floats, others, is_float))
        outputs = task.apply(trained, whole, method="head") if has_head else whole
        return task.loss(outputs, batch)

    leaves = join(jax.lax.map(lambda part: encoded(trained, part), xs))
    floats = [leaf for leaf, real in zip(leaves, is_float, strict=True) if real]
    others = [leaf for leaf, real in zip(leaves, is_float, strict=True) if not real]
    graded = jax.value_and_grad(head_loss, argnums=(0, 1), has_aux=True)
    found, (total, d_floats) = graded(trained, floats, others)

    def step(total: Any, xs: Any) -> tuple[Any, None]:
        part, d_part = xs

        def of_floats(trained: Any) -> list[Any]:
            return [leaf for leaf, real in zip(encoded(trained, part), is_float, strict=True) if real]

        (d_trained,) = jax.vjp(of_floats, trained)[1](d_part)
        return jax.tree.map(jnp.add, total, d_trained), None

    total, _ = jax.lax.scan(step, total, (xs, split(d_floats, parts)))
    return found, total


def _averaged(task: Task, trained: Any, batch: Mapping[str, Any], parts: int) -> Graded:
    if "mix_partner_B" in batch:
        raise ValueError(
            "micro.how 'averaged' makes each part a batch of its own, and mixup or cutmix mixed clips of different "
            "parts; set micro.how='cached'"
        )
    rows_B = jnp.arange(next(iter(batch.values())).shape[0])

    def loss(trained: Any, part: Any) -> Any:
        batch, rows_B = part
        return task.loss(task.apply(trained, *task.inputs(batch), rows_B=rows_B), batch)

    def step(total: Any, part: Any) -> tuple[Any, Any]:
        found, gradient = jax.value_and_grad(loss, has_aux=True)(trained, part)
        return jax.tree.map(lambda one, other: one + other / parts, total, gradient), found

    zeros = jax.tree.map(jnp.zeros_like, trained)
    total, found = jax.lax.scan(step, zeros, split((dict(batch), rows_B), parts))
    return jax.tree.map(lambda x: x.mean(axis=0), found), total


def split(tree: Any, parts: int) -> Any:
    """Rows [B, ...] as [parts, B / parts, ...]: part p takes every `parts`-th row from p on.

    So each device works on rows of its own in every part; whole blocks would leave most of them idle.
    """

    def one(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "batch", *[None] * (x.ndim - 2))

    return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
    """The way back from `split`."""

    def one(x: jax.Array) -> jax.Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return constrain(x, "batch", *[None] * (x.ndim - 1))

    return jax.tree.map(one, tree)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _interleave(floats: list[Any], others: list[Any], is_float: list[bool]) -> list[Any]:
    floats, others = list(floats), list(others)
    return [(floats if real else others).pop(0) for real in is_float]
