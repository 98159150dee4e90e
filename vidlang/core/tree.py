"""Parameter trees by path: masks written as regular expressions, and merging one tree into another with a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from vidlang.core.config import did_you_mean


def path_name(path: Sequence[Any]) -> str:
    """'encoder/layers/query/kernel' for a jax key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Leaves by their path name, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of leaves, or of whole trees, that are given by path name."""
    found: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        here = found
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = leaf
    return found


def path_mask(tree: Any, patterns: Sequence[str], *, what: str = "this rule") -> Any:
    """A tree of bools: True where any pattern is found in the leaf's path.

    A pattern that matches nothing is an error: a freeze rule with a typo must not train what was to stay.
    """
    if isinstance(patterns, str):  # its letters would be the patterns
        raise ValueError(f"{what}: give a list of patterns, as in [{patterns!r}]; found the text {patterns!r}")
    names = list(flatten_paths(tree))
    for pattern in patterns:
        try:
            matched = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(f"{what}: {pattern!r} is not a regular expression: {error}") from None
        if not matched:
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            hint = did_you_mean(pattern, names)
            raise ValueError(f"{what}: {pattern!r} matches no parameter{hint}; there are: {shown}")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(pattern, path_name(path)) for pattern in patterns), tree
    )


@dataclass(frozen=True)
class MergeReport:
    """What happened to every leaf when a source tree was merged into a target tree."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the target, nothing in the source: keeps its fresh value
    unused: tuple[str, ...]  # in the source, no place in the target
    mismatched: tuple[str, ...]  # in both, other shape: keeps its fresh value

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} parameters loaded"]
        for label in ("missing", "unused", "mismatched"):
            names = getattr(self, label)
            if names:
                parts.append(f"{len(names)} {label}:\n  " + "\n  ".join(names))
        return "\n".join(parts)

    def raise_unless(self, allowed: Sequence[str] = ()) -> None:
        """ValueError unless every missing, unused or mismatched leaf is matched by a pattern in `allowed`."""
        left = [
            name
            for name in (*self.missing, *self.unused, *self.mismatched)
            if not any(re.search(pattern, name) for pattern in allowed)
        ]
        if left:
            raise ValueError(
                f"the parameters do not fit ({len(left)} differ from what was expected).\n{self}\n"
                "List the intended differences as patterns, or mend the names or shapes"
            )


def merge(target: Any, source: Any, *, rules: Sequence[tuple[str, str]] = ()) -> tuple[Any, MergeReport]:
    """The target with every leaf that the source also has, by path; `rules` rename source paths (regex, new)."""
    found: dict[str, Any] = {}
    for name, leaf in flatten_paths(source).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in found:
            raise ValueError(f"the renaming rules give two parameters the name {name!r}")
        found[name] = leaf
    loaded, missing, mismatched = [], [], []

    def pick(path: Sequence[Any], leaf: Any) -> Any:
        name = path_name(path)
        if name not in found:
            missing.append(name)
            return leaf
        new = found[name]
        if tuple(new.shape) != tuple(leaf.shape):
            mismatched.append(f"{name} {tuple(leaf.shape)}, found {tuple(new.shape)}")
            return leaf
        loaded.append(name)
        return new.astype(leaf.dtype)

    merged = jax.tree_util.tree_map_with_path(pick, target)
    unused = sorted(set(found) - set(flatten_paths(target)))
    return merged, MergeReport(tuple(loaded), tuple(missing), tuple(unused), tuple(mismatched))


def count(tree: Any) -> int:
    """Number of scalars in all leaves."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def table(params: Mapping[str, Any], *, limit: int = 60) -> str:
    """A readable table of paths, shapes and sizes, for the log."""
    rows = [
        f"  {name:<60} {str(tuple(leaf.shape)):<22} {leaf.size:>12,}" for name, leaf in flatten_paths(params).items()
    ]
    more = [f"  ... and {len(rows) - limit} more"] if len(rows) > limit else []
    return "\n".join([*rows[:limit], *more, f"  {'all':<60} {'':<22} {count(params):>12,}"])
