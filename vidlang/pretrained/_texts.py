"""What the text towers of Hugging Face folders have in common: settings that must be plain, and sections both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vidlang.core.config import call, is_section
from vidlang.models import text as text_model
from vidlang.nn.spec import TransformerSpec

# By the names of config.json; of several that mean one, the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# What decides how a tower is computed or trained, and not what it computes.
FREE = ("dtype", "remat", "scan", "attention", "groups", "frozen_layers", "drop_path", "table_std", "transformer")
HIDDEN = ("parent", "name")
Spec = Callable[[Mapping[str, Any]], dict[str, Any]]


def need_plain(config: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """ValueError where a setting of config.json is another than the only one that is known."""
    for name, known in plain.items():
        found = config.get(name, known)
        if found != known and (found or known):  # nothing is said in several ways: null, false, {}
            raise ValueError(
                f"config.json has {name} {found!r}, and this family knows {known!r} only; give another model's folder"
            )


def activation_of(name: str, what: str) -> str:
    """Ours by theirs."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{what} with the activation {name!r} is not known; there are: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_name(ours: str) -> str:
    """Theirs by ours."""
    return next(name for name, known in ACTIVATIONS.items() if known == ours)


def text_of(section: Mapping[str, Any]) -> tuple[text_model.Model, TransformerSpec]:
    """The text tower of a model's section, and the stack of it."""
    if not is_section(section.get("text")):
        raise ValueError(f"a text tower is written from a section with the key text; found {', '.join(section)}")
    tower = call(text_model.Model, section["text"], what="model.text", parent=None)
    return tower, call(TransformerSpec, tower.transformer, what="model.text.transformer")


def check_counterpart(section: Mapping[str, Any], written: Mapping[str, Any], family: str) -> None:
    """ValueError where a section says what `written`, the section of the config.json made from it, does not."""
    problems: list[str] = []
    pairs: list[tuple[str, Any, Any]] = list(zip(("", "transformer."), text_of(section), text_of(written), strict=True))
    for where, here, there in pairs:
        for field in dataclasses.fields(here):
            if field.name not in (*FREE, *HIDDEN) and (mine := getattr(here, field.name)) != getattr(there, field.name):
                theirs = getattr(there, field.name)
                problems.append(f"model.text.{where}{field.name} is {mine!r}, and in every {family} it is {theirs!r}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}: config.json of a {family} has no counterpart of that")


def check_tied(tensors: Mapping[str, np.ndarray], pairs: Mapping[str, str]) -> None:
    """ValueError where the second of two tensors that should be one and the same is another."""
    for name, known in pairs.items():
        if name in tensors and known in tensors and not np.array_equal(tensors[name], tensors[known]):
            raise ValueError(
                f"{name} is not {known}, which it is in models whose words are guessed with their own rows; this "
                "family knows these only"
            )
