"""From config values to Python: names become modules, dicts become arguments, durations become steps.

A config is data. This file is the only place that turns it into calls, so every typo is answered the same way: with
what was found, what exists and how to mend it.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

EXTENSION_FOLDERS = ("models", "objectives", "datasets", "evals", "pretrained")

# What a config may give where code asks for these types, and how an error calls it.
SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
    type(None): ((type(None),), "None"),
}


def extension_names(kind: str) -> list[str]:
    """Names that a config may give for `kind`: the modules in that folder (`evals/metrics` holds no protocol)."""
    package = importlib.import_module(f"vidlang.{kind}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if name != "metrics" and not name.startswith("_"))


def load_module(kind: str, name: str) -> ModuleType:
    """Imports `vidlang.<kind>.<name>`; an extension is one file and its name in a config."""
    if kind not in EXTENSION_FOLDERS:
        raise ValueError(f"unknown kind of extension {kind!r}; there are {', '.join(EXTENSION_FOLDERS)}")
    known = extension_names(kind)
    if name not in known:
        raise ValueError(
            f"unknown name {name!r} in vidlang/{kind}/{did_you_mean(name, known)}; "
            f"there are: {', '.join(known)}. To add one, put {name}.py there"
        )
    return importlib.import_module(f"vidlang.{kind}.{name}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' when something close exists, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def call(function: Callable[..., Any], kwargs: Mapping[str, Any], *, what: str, **extra: Any) -> Any:
    """Calls `function(**kwargs, **extra)` where `kwargs` comes from a config, so that a bad key is a clear error.

    `extra` are arguments the code supplies; a config may not set them. `what` names the place in the config.
    """
    check_keys(function, kwargs, what=what, extra=extra)
    return function(**kwargs, **extra)


def check_keys(function: Callable[..., Any], kwargs: Mapping[str, Any], *, what: str, extra: Iterable[str]) -> None:
    """Raises what `call` would raise about `kwargs` and their types; `extra` names what the code will supply."""
    if not is_section(kwargs):
        raise ValueError(f"{what} must be a section of keys; found {kwargs!r}")
    extra = set(extra)
    parameters = _parameters(function)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    # Linen adds `parent` and `name` to every module's constructor; no config sets them. (Workers import no Linen.)
    hidden = ("parent", "name") if isinstance(function, type) and hasattr(function, "bind") else ()
    valid = [p.name for p in named if p.name not in extra and p.name not in ("self", *hidden)]
    takes = f"it takes: {', '.join(valid)}" if valid else "it takes no keys"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in valid:
                hint = did_you_mean(key, valid)
                raise ValueError(f"{what} has an unknown key {key!r}{hint}; {takes}")
    missing = [p.name for p in named if p.default is p.empty and p.name in valid and p.name not in kwargs]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(map(repr, missing))}; {takes}")
    for p in named:
        if p.name in kwargs and p.name in valid and not (kwargs[p.name] is None and p.default is None):
            _check_type(function, p.name, kwargs[p.name], what)


@functools.lru_cache(maxsize=1024)  # data workers check the same few rules for every clip
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def is_section(value: Any) -> bool:
    """Whether a config value holds keys: a mapping, or a ConfigDict, which does not call itself one."""
    return isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__"))


def _check_type(function: Callable[..., Any], key: str, value: Any, what: str) -> None:
    hint = _type_hint(function, key)
    if not _fits(value, hint):
        place = f"{key} of {what}" if " " in what else f"{what}.{key}"
        raise ValueError(f"{place} must be {_words(hint)}; found {value!r}")


@functools.lru_cache(maxsize=1024)
def _type_hint(function: Callable[..., Any], key: str) -> Any:
    """The type that `function` asks of one argument; Any where there is no annotation or it has no meaning here.

    Annotations are resolved one at a time: a name imported for the type checker only must not switch off the others.
    """
    owners: list[tuple[Any, dict[str, Any]]]
    if isinstance(function, type) and is_dataclass(function):  # Linen modules are dataclasses
        owners = [(kind, vars(sys.modules[kind.__module__])) for kind in function.__mro__ if kind is not object]
    else:
        plain = inspect.unwrap(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
        owners = [(plain, getattr(plain, "__globals__", {}))] if hasattr(plain, "__annotations__") else []
    for owner, names in owners:
        annotations = inspect.get_annotations(owner)
        if key in annotations:
            one = SimpleNamespace(__annotations__={key: annotations[key]})
            try:
                return typing.get_type_hints(one, names, include_extras=True)[key]
            except (NameError, AttributeError, TypeError, SyntaxError):
                return Any
    return Any


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config value is what a type asks for; a type that no config can write is not checked."""
    if hint in SCALARS:
        kinds, _ = SCALARS[hint]
        return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    origin = typing.get_origin(hint) or hint
    if origin is typing.Annotated:
        return _fits(value, typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if _holds_keys(origin):
        return is_section(value)
    if _holds_items(origin):
        scalar = isinstance(value, str | bytes | int | float) or value is None
        return not scalar and not is_section(value)
    return True


def _words(hint: Any) -> str:
    """How an error calls a type; a text inside Annotated is the argument's own words."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Annotated:
        own = [note for note in typing.get_args(hint)[1:] if isinstance(note, str)]
        return own[0] if own else _words(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(option) for option in typing.get_args(hint)))
    if hint in SCALARS:
        return SCALARS[hint][1]
    return "a section of keys" if _holds_keys(origin) else "a list"


def _holds_keys(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _holds_items(kind: Any) -> bool:
    return kind in (Collection, Iterable) or (
        isinstance(kind, type) and issubclass(kind, Sequence) and not issubclass(kind, str | bytes)
    )


def steps(duration: str, *, batch_size: int, dataset_size: int | None = None, total: int | None = None) -> int:
    """Number of steps that a duration like "600 steps", "2 epochs", "1e6 examples" or "5 percent" means.

    Fractions round up, so that no asked-for example is left out; "percent" is of `total` steps.
    """
    parts = duration.split() if isinstance(duration, str) else []
    units = ("steps", "epochs", "examples", "percent")
    unit = parts[1] if len(parts) == 2 else ""
    unit = {"step": "steps", "epoch": "epochs", "example": "examples"}.get(unit, unit)
    try:
        amount = float(parts[0]) if parts else math.nan
    except ValueError:
        amount = math.nan
    if unit not in units or not (math.isfinite(amount) and amount >= 0):
        raise ValueError(
            f"cannot read the duration {duration!r}; write a number and one of {', '.join(units)}, "
            'for example "600 steps" or "2 epochs"'
        )
    if unit == "epochs":
        if dataset_size is None:
            raise ValueError(f"the duration {duration!r} needs a dataset; give it in steps or examples here")
        exact = amount * dataset_size / batch_size
    elif unit == "examples":
        exact = amount / batch_size
    elif unit == "percent":
        if total is None:
            raise ValueError(f"the duration {duration!r} is a share of nothing here; give it in steps")
        exact = amount * total / 100
    else:
        exact = amount
    return math.ceil(round(exact, 6))


def to_dict(config: Any) -> Any:
    """The config as plain dicts, tuples and scalars: ConfigDicts inside tuples are reached too."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return tuple(to_dict(value) for value in config)
    return os.fspath(config) if isinstance(config, os.PathLike) else config


def fingerprint(mapping: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change when any value does, on whatever machine and in whatever key order."""
    canonical = json.dumps(to_dict(mapping), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differing_keys(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Dotted paths at which two plain configs differ, for errors that say what changed."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = []
        for key in sorted({*one, *other}):
            path = f"{prefix}.{key}" if prefix else str(key)
            if key not in one or key not in other:
                found.append(path)
            else:
                found.extend(differing_keys(one[key], other[key], path))
        return found
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [key for i, (a, b) in pairs for key in differing_keys(a, b, f"{prefix}[{i}]")]
    return [] if one == other else [prefix]
