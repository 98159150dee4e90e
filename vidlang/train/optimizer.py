"""AdamW, SGD or Lion with clipping and rules by parameter path: what decays, is frozen, or learns slower.

Every rule is a list of regular expressions searched in paths like `video_encoder/stack/layers/mlp_in/kernel`; one that
matches nothing is an error. Frozen parameters are taken out of the tree before it reaches the optimizer: they have no
gradient, no moments and no update, so they stay bit for bit what they were. Where a model freezes its first layers,
that holds for the first rows of the arrays that all its layers are stacked in; where layers learn at rates of their
own (`layer_decay`), so do these rows.
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
import numpy as np
import optax

from vidlang.core.config import did_you_mean, steps
from vidlang.core.tree import flatten_paths, path_mask, path_name
from vidlang.train.schedules import Schedule, make_schedule

# What each method may be told, and what it is where nothing is said.
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "sgd": {"momentum": 0.9, "nesterov": False},
    "lion": {"b1": 0.9, "b2": 0.99},
}

# What decay would only pull towards nothing: offsets, norms, scales, positions and single learned tokens.
NO_DECAY = re.compile(
    r"(^|/)(bias|scale|log_scale|cls|mask_token|positions|temporal|spatial|latents?|time_gate|(attention|mlp)_open)$"
)

# The video encoder's layers, by the first of their run, and what it has before them.
LAYERS = re.compile(r"^(?:video_encoder/)?stack/layers(?:_(\d+))?/")
STEM = re.compile(r"^(?:video_encoder/)?(patch|image_patch|views|stem_norm|temporal|spatial|positions|cls)(/|$)")

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
    if fixed is True or fixed is False:
        return None if fixed else rule
    return rule[fixed:] if isinstance(rule, np.ndarray) else rule


def _rows(leaf: Any, rows: slice) -> Any:
    """Some rows of an array, or of one in its box of logical names."""
    return leaf.replace_boxed(leaf.unbox()[rows]) if isinstance(leaf, nn.meta.AxisMetadata) else leaf[rows]


def make_optimizer(
    params: Any,
    *,
    total_steps: int,
    batch_size: int,
    learning_rate: float,
    name: str = "adamw",
    warmup: str = "0 steps",
    warmup_from: float | None = None,
    schedule: str = "cosine",
    final_learning_rate: float = 0.0,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] | None = None,
    clip_norm: float | None = 1.0,
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    freeze: Sequence[str] = (),
    train_only: Sequence[str] | None = None,
    learning_rate_scales: Sequence[tuple[str, float]] = (),
    layer_decay: float | None = None,
    freeze_rows: Mapping[str, int | None] = NOTHING_MORE,
) -> Optimizer:
    """The optimizer of a stage; keywords between `batch_size` and `freeze_rows` are keys of `optimizer` in its config.

    `params` may be abstract: only paths and shapes count. `name` is "adamw" (b1, b2, eps), "sgd" (momentum, nesterov)
    or "lion" (b1, b2). `no_decay` replaces the default rule (biases, norms, scales, positions and cls tokens do not
    decay). `learning_rate_scales` are (pattern, factor) pairs; the first that matches holds. `layer_decay` is what a
    layer of the video encoder learns at, as a share of the next one's rate; what comes after them has the whole rate.
    `train_only` freezes whatever none of its patterns matches; what `freeze` matches too stays frozen.
    `freeze_rows` is what the model itself freezes: pattern to number of first rows, or None for all of them.
    """
    for key, value, allowed, words in (
        ("learning_rate", learning_rate, lambda x: x >= 0, "from 0 on"),
        ("final_learning_rate", final_learning_rate, lambda x: x >= 0, "from 0 on"),
        ("warmup_from", warmup_from, lambda x: x >= 0, "from 0 on"),
        ("weight_decay", weight_decay, lambda x: x >= 0, "from 0 on"),
        ("clip_norm", clip_norm, lambda x: x > 0, "above 0, or None for no clipping"),
        ("layer_decay", layer_decay, lambda x: 0 < x <= 1, "above 0 and up to 1, or None for none"),
    ):
        if value is not None:
            _check_number(key, value, allowed, words)
    options = _method_options(name, b1=b1, b2=b2, eps=eps, momentum=momentum, nesterov=nesterov)
    frozen = _frozen(params, freeze, train_only, freeze_rows)
    check_patterns("optimizer.no_decay", () if no_decay is None else no_decay)
    _check_scales(learning_rate_scales)
    follow = make_schedule(
        schedule,
        peak=learning_rate,
        final=final_learning_rate,
        warmup=steps(warmup, batch_size=batch_size, total=total_steps),
        total=total_steps,
        first=warmup_from,
    )
    scales = _scales(params, learning_rate_scales)
    if layer_decay is not None:
        scales = jax.tree.map(lambda one, other: one * other, scales, _layer_scales(params, layer_decay))
    decayed, scales = (jax.tree.map(_trained_rule, frozen, rule) for rule in (_decayed(params, no_decay), scales))
    parts = [
        *_method(name, options, weight_decay, decayed),
        _scale_each(scales) if learning_rate_scales or layer_decay is not None else optax.identity(),
        optax.scale_by_learning_rate(follow),
    ]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    return Optimizer(optax.chain(*parts), follow, frozen)


def _method_options(name: str, **given: Any) -> dict[str, Any]:
    """All that the method is told; ValueError for what it would not listen to."""
    if name not in METHODS:
        raise ValueError(
            f"unknown optimizer.name {name!r}{did_you_mean(name, METHODS)}; there are: {', '.join(METHODS)}"
        )
    options = dict(METHODS[name])
    for key, value in given.items():
        if value is None:
            continue
        if key not in options:
            owners = " and ".join(method for method, keys in METHODS.items() if key in keys)
            raise ValueError(f"optimizer.{key} is for {owners}, and optimizer.name is {name!r}; leave it out")
        if key == "eps":
            _check_number(key, value, lambda x: x > 0, "above 0")
        elif key != "nesterov":
            _check_number(key, value, lambda x: 0 <= x < 1, "from 0 to below 1")
        options[key] = value
    return options


def _method(
    name: str, options: Mapping[str, Any], weight_decay: float, decayed: Any
) -> list[optax.GradientTransformation]:
    """From gradients to updates of rate 1, weight decay included."""
    decay = optax.add_decayed_weights(weight_decay, mask=decayed) if weight_decay else optax.identity()
    if name == "sgd":
        # Decay is a part of the gradient here, and gathers momentum with it, as the recipes for SGD mean it.
        return [decay, optax.trace(options["momentum"], options["nesterov"])]
    return [(optax.scale_by_lion if name == "lion" else optax.scale_by_adam)(**options), decay]


def _frozen(
    params: Any, freeze: Sequence[str], train_only: Sequence[str] | None, freeze_rows: Mapping[str, int | None]
) -> Any:
    """Which leaves are frozen, or how many of their first rows."""
    check_patterns("optimizer.freeze", freeze)
    frozen = path_mask(params, freeze, what="optimizer.freeze")
    if train_only is not None:
        check_patterns("optimizer.train_only", train_only)
        chosen = path_mask(params, train_only, what="optimizer.train_only")
        frozen = jax.tree.map(lambda fixed, wanted: fixed or not wanted, frozen, chosen)
    frozen = _with_rows(params, frozen, freeze_rows)
    if all(fixed is True for fixed in jax.tree.leaves(frozen)):
        raise ValueError(f"optimizer.freeze {tuple(freeze)} and train_only {train_only}: nothing is left to train")
    return frozen


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


def _layer_scales(params: Any, decay: float) -> Any:
    """The factor on the learning rate of each leaf: that of layer l of L is decay^(L - l), counted from 0.

    The stem counts as the layer before the first, decay^(L + 1). All layers lie in one array, and so do their factors.
    """
    runs = {}
    for name, leaf in flatten_paths(params).items():
        if found := LAYERS.match(name):
            first = int(found[1] or 0)
            runs[name] = range(first, first + leaf.shape[0])
    if not runs:
        names = list(flatten_paths(params))
        raise ValueError(
            "optimizer.layer_decay is for the layers of a video encoder, under video_encoder/stack/layers/ or "
            f"stack/layers/, and there are none; there are: {', '.join(names[:12])}"
        )
    layers = max(run.stop for run in runs.values())

    def factor(path: Sequence[Any], leaf: Any) -> Any:
        name = path_name(path)
        if name in runs:
            factor_L = decay ** (layers - np.asarray(runs[name], np.float32))
            return factor_L.astype(np.float32).reshape(-1, *[1] * (len(leaf.shape) - 1))
        return decay ** (layers + 1) if STEM.match(name) else 1.0

    return jax.tree_util.tree_map_with_path(factor, params)


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
