"""What of a model is exported: its methods as functions of one batch each, with the parameters inside.

An exported model computes in float32 and attends by plain products of matrices: the file runs where no kernel of a
training machine does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vidlang.ops.dials import Dials, streams

# Methods that are exported, and what each output is called. A classifier's logits are all that it is for.
OUTPUTS = {"classify": "logits", "embed_video": "embedding", "embed_text": "embedding"}
# What a model computes in: float32, or what it was trained in.
DTYPES = ("float32", "own")


@dataclass(frozen=True)
class Program:
    """A method of a model. inputs: name -> what one row of it looks like. The function takes them by name, batched."""

    method: str
    function: Callable[..., jax.Array]
    inputs: dict[str, jax.ShapeDtypeStruct]
    output: str

    def example(self, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Inputs drawn at random; texts are of ids that every vocabulary has."""
        rng = np.random.default_rng(seed)
        return {name: _draw(rng, (batch, *like.shape), np.dtype(like.dtype)) for name, like in self.inputs.items()}


def programs(model: nn.Module, params: Any, fields: Mapping[str, jax.ShapeDtypeStruct], dials: Dials) -> list[Program]:
    """The methods of a model that are exported. fields: a batch as training saw it."""
    methods = [method for method in OUTPUTS if hasattr(model, method)]
    if "classify" in methods:
        methods = ["classify"]
    if not methods:
        raise ValueError(
            f"the model {type(model).__module__} has none of the methods {', '.join(OUTPUTS)}; export a dual encoder "
            "or a classifier"
        )
    return [_program(model, params, method, fields, dials) for method in methods]


def _program(
    model: nn.Module, params: Any, method: str, fields: Mapping[str, jax.ShapeDtypeStruct], dials: Dials
) -> Program:
    taken = inspect.signature(getattr(model, method)).parameters
    names = [name for name, each in taken.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in names if name not in fields]:
        raise ValueError(
            f"{method} takes {', '.join(missing)}, which the batches of this run do not have; they have "
            f"{', '.join(fields)}"
        )
    options: dict[str, Any] = {"dials": dials} if "dials" in taken else {}
    short = {name.rsplit("_", 1)[0]: name for name in names}

    def function(**arrays: jax.Array) -> jax.Array:
        # What dials draw at inference, they draw the same each time.
        bound = model.bind({"params": params}, rngs=streams(jax.random.key(0)))
        found: jax.Array = getattr(bound, method)(**{short[name]: each for name, each in arrays.items()}, **options)
        return found

    inputs = {name: jax.ShapeDtypeStruct(fields[each].shape[1:], fields[each].dtype) for name, each in short.items()}
    return Program(method, function, inputs, OUTPUTS[method])


def standalone(model: nn.Module, dtype: str = "float32") -> nn.Module:
    """The model with every transformer in it as an exported one runs."""
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r} of an export; it is one of {', '.join(DTYPES)}")
    sections = {name: getattr(model, name) for name in _attributes(model)}
    plain: Any = {name: _plain(value, dtype) for name, value in sections.items() if isinstance(value, Mapping)}
    return model.clone(**plain)


def _plain(section: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    found = {name: _plain(value, dtype) if isinstance(value, Mapping) else value for name, value in section.items()}
    if {"layers", "width", "heads"} <= set(section):
        # Chunked attention is for more tokens than would fit into memory at once, and runs anywhere.
        found["attention"] = "chunked" if section.get("attention") == "chunked" else "reference"
        if dtype != "own":
            found["dtype"] = dtype
    return found


def _attributes(model: nn.Module) -> list[str]:
    return [name for name in type(model).__dataclass_fields__ if name not in ("parent", "name")]


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    ids = rng.integers(1, 3, shape).astype(dtype)
    length = rng.integers(1, shape[-1] + 1, shape[:-1])[..., None]
    return np.where(np.arange(shape[-1]) < length, ids, 0).astype(dtype)
