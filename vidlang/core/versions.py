"""What code runs here: one hash of the checkout, and the versions of the packages that decide results."""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders of the checkout whose files decide what a run computes.
FOLDERS = ("vidlang", "configs", "launch")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")


def code_digest(root: Path = ROOT) -> str:
    """A hash of every Python file of the checkout, by its path and text."""
    found = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            found.update(f"{path.relative_to(root).as_posix()}\0".encode())
            found.update(path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def facts() -> dict[str, str]:
    """The code and versions of this process, for people and for comparing."""
    versions = " ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return {"the code": code_digest(), "the packages": versions, "Python": sys.version.split()[0]}
