"""AdamW with warm-up, schedule, clipping and rules by parameter path: what decays, is frozen, or learns slower.

Every rule is a list of regular expressions searched in paths like `video_encoder/stack/layers/mlp_in/kernel`; one that
matches nothing is an error. Frozen parameters are taken out of the tree before it reaches the optimizer: they have no
gradient, no moments and no update, so they stay bit for bit what they were. Where a model freezes its first layers,
that holds for the first rows of the arrays that all its layers are stacked in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vidlang.core.config import steps
from vidlang.core.tree import flatten_paths, path_mask, path_name

SCHEDULES = ("cosine", "constant")

# What decay would only pull towards nothing: offsets, norms, scales, positions and single learned tokens.
NO_DECAY = re.compile(r"(^|/)(bias|scale|log_scale|cls|positions|temporal|spatial)$")

Schedule = Callable[[Any], jax.Array]
NOTHING_MORE: Mapping[str, int | None] = MappingProxyType({})


@dataclass(frozen=True)
class Optimizer:
    """The transformation of gradients, the learning rate it follows, and which leaves it leaves alone."""

    transform: optax.GradientTransformation
    schedule: Schedule
    frozen: Any  # with the structure of the parameters: a bool, or the number of first rows that are frozen

    def split(self, params: Any) -> tuple[Any, Any]:
        """(trained, frozen): two trees of the same form, each with None in the other's places."""
        return jax.tree.map(_trained_part, self.frozen, params), jax.tree.map(_frozen_part, self.frozen, params)

    def join(self, trained: Any, frozen: Any) -> Any:
        """The whole tree again."""

        def whole(fixed: Any, one: Any, other: Any) -> Any:
            if fixed is True or fixed is False:
                return other if fixed else one
            return jnp.concatenate([other, one])

        return jax.tree.map(whole, self.frozen, trained, frozen)


def _trained_part(fixed: Any, leaf: Any) -> Any:
    if fixed is True or fixed is False:
        return None if fixed else leaf
    return _rows(leaf, slice(fixed, None))


def _frozen_part(fixed: Any, leaf: Any) -> Any:
    if fixed is True or fixed is False:
        return leaf if fixed else None
    return _rows(leaf, slice(fixed))


def _trained_rule(fixed: Any, rule: Any) -> Any:
    return None if fixed is True else rule


def _rows(leaf: Any, rows: slice) -> Any:
    """Some rows of an array, or of one in its box of logical names."""
    return leaf.replace_boxed(leaf.unbox()[rows]) if isinstance(leaf, nn.meta.AxisMetadata) else leaf[rows]


def make_optimizer(
    params: Any,
    *,
    total_steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: str = "0 steps",
    schedule: str = "cosine",
    final_learning_rate: float = 0.0,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] | None = None,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    freeze: Sequence[str] = (),
    train_only: Sequence[str] | None = None,
    learning_rate_scales: Sequence[tuple[str, float]] = (),
    freeze_rows: Mapping[str, int | None] = NOTHING_MORE,
) -> Optimizer:
    """The optimizer of a stage; keywords between `batch_size` and `freeze_rows` are keys of `optimizer` in its config.

    `params` may be abstract: only paths count. `no_decay` replaces the default rule (biases, norms, scales, positions
    and cls tokens do not decay). `learning_rate_scales` are (pattern, factor) pairs; the first that matches holds.
    `train_only` freezes whatever none of its patterns matches; what `freeze` matches too stays frozen.
    `freeze_rows` is what the model itself freezes: pattern to number of first rows, or None for all of them.
    """
    for name, value in {"learning_rate": learning_rate, "final_learning_rate": final_learning_rate}.items():
        _check_number(name, value, lambda x: x >= 0, "from 0 on")
    _check_number("weight_decay", weight_decay, lambda x: x >= 0, "from 0 on")
    for name, value in {"b1": b1, "b2": b2}.items():
        _check_number(name, value, lambda x: 0 <= x < 1, "from 0 to below 1")
    _check_number("eps", eps, lambda x: x > 0, "above 0")
    if clip_norm is not None:
        _check_number("clip_norm", clip_norm, lambda x: x > 0, "above 0, or None for no clipping")
    check_patterns("optimizer.freeze", freeze)
    check_patterns("optimizer.no_decay", () if no_decay is None else no_decay)
    _check_scales(learning_rate_scales)
    frozen = path_mask(params, freeze, what="optimizer.freeze")
    if train_only is not None:
        check_patterns("optimizer.train_only", train_only)
        chosen = path_mask(params, train_only, what="optimizer.train_only")
        frozen = jax.tree.map(lambda fixed, wanted: fixed or not wanted, frozen, chosen)
    frozen = _with_rows(params, frozen, freeze_rows)
    if all(fixed is True for fixed in jax.tree.leaves(frozen)):
        raise ValueError(f"optimizer.freeze {tuple(freeze)} and train_only {train_only}: nothing is left to train")
    follow = make_schedule(
        schedule,
        peak=learning_rate,
        final=final_learning_rate,
        warmup=steps(warmup, batch_size=batch_size, total=total_steps),
        total=total_steps,
    )
    decayed, scales = (
        jax.tree.map(_trained_rule, frozen, rule)
        for rule in (_decayed(params, no_decay), _scales(params, learning_rate_scales))
    )
    parts = [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed) if weight_decay else optax.identity(),
        _scale_each(scales) if learning_rate_scales else optax.identity(),
        optax.scale_by_learning_rate(follow),
    ]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    return Optimizer(optax.chain(*parts), follow, frozen)


def make_schedule(name: str, *, peak: float, final: float, warmup: int, total: int) -> Schedule:
    """Learning rate of a step: a linear climb that reaches `peak` at step `warmup - 1`, then cosine or constant.

    The very first step already learns, and the cosine would reach `final` at step `total`, one after the last.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown optimizer.schedule {name!r}; there are: {', '.join(SCHEDULES)}")
    if not 0 <= warmup <= total:
        raise ValueError(f"optimizer.warmup lasts {warmup} steps, but the stage only {total}")

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        climb = jnp.minimum((step + 1) / float(warmup), 1.0) if warmup else 1.0
        if name == "constant":
            return jnp.asarray(peak * climb, jnp.float32)
        # As floats: an int beyond 32 bits is none that jax takes.
        done = jnp.clip((step - float(warmup)) / float(max(total - warmup, 1)), 0.0, 1.0)
        return climb * (final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

    return schedule


def check_patterns(what: str, patterns: Any) -> None:
    """ValueError for a bare string: it would be taken letter by letter, and nearly every letter is found somewhere."""
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{what} must be a list of patterns, like ('bias$',); found {patterns!r}")


def _decayed(params: Any, no_decay: Sequence[str] | None) -> Any:
    """True where weight decay pulls."""
    if no_decay is not None:
        return jax.tree.map(lambda spared: not spared, path_mask(params, no_decay, what="optimizer.no_decay"))
    return jax.tree_util.tree_map_with_path(lambda path, _: not NO_DECAY.search(path_name(path)), params)


def _with_rows(params: Any, frozen: Any, freeze_rows: Mapping[str, int | None]) -> Any:
    """Which leaves are frozen, once those rows are that the model freezes."""
    path_mask(params, list(freeze_rows), what="what the model freezes")

    def merge(path: Sequence[Any], fixed: bool, leaf: Any) -> bool | int:
        for pattern, rows in freeze_rows.items():
            if not fixed and re.search(pattern, path_name(path)):
                return True if rows is None or rows == leaf.shape[0] else rows
        return fixed

    return jax.tree_util.tree_map_with_path(merge, frozen, params)


def _scales(params: Any, pairs: Sequence[tuple[str, float]]) -> Any:
    """The factor on the learning rate of each leaf."""
    path_mask(params, [pattern for pattern, _ in pairs], what="optimizer.learning_rate_scales")
    factors = {
        name: next((float(factor) for pattern, factor in pairs if re.search(pattern, name)), 1.0)
        for name in flatten_paths(params)
    }
    return jax.tree_util.tree_map_with_path(lambda path, _: factors[path_name(path)], params)


def _scale_each(factors: Any) -> optax.GradientTransformation:
    """Multiplies every update by its own constant."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors))


def _check_number(name: str, value: Any, holds: Callable[[float], bool], expected: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and holds(value)):
        raise ValueError(f"optimizer.{name} must be a number {expected}; found {value!r}")


def _check_scales(pairs: Any) -> None:
    expected = "optimizer.learning_rate_scales must be a list of (pattern, factor) pairs, like (('^text/', 0.1),)"
    if not isinstance(pairs, list | tuple):
        raise ValueError(f"{expected}; found {pairs!r}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"{expected}; found {pair!r} among them")
        _check_number("learning_rate_scales", pair[1], lambda x: x >= 0, f"from 0 on for {pair[0]!r}")
