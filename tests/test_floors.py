"""Imports go only downward, and the data side never reaches jax: read from the source, not from what runs."""

import ast
from pathlib import Path

import pytest

FLOORS = {
    "core": 0,
    "ops": 1,
    "nn": 2,
    "models": 3,
    "pretrained": 3,
    "objectives": 4,
    "evals": 5,
    "train": 6,
    "serve": 7,
    "cost": 7,
}
# The data side stands beside the floors: which other folders of vidlang each part may import.
SIDE = {"data": {"core", "data"}, "datasets": {"core", "data", "datasets"}}
JAX_FREE_CORE = {"vidlang.core.config"}
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
FORBIDDEN_ANYWHERE = {"tensorflow", "torch"}
ROOT = Path(__file__).resolve().parent.parent / "vidlang"


def imports(source: str) -> set[str]:
    """Every absolute module name that the source imports, at whatever depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor they go to"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def offences(folder: str, source: str) -> list[str]:
    """What in this file's imports breaks the rule of its folder."""
    found = []
    for name in sorted(imports(source)):
        parts = name.split(".")
        if parts[0] in FORBIDDEN_ANYWHERE or parts[0] in ("launch", "configs", "tests"):
            found.append(name)
        elif folder in SIDE and parts[0] in JAX_FAMILY:
            found.append(name)
        elif parts[0] == "vidlang" and len(parts) > 1:
            target = parts[1]
            if folder in SIDE:
                allowed = target in SIDE[folder]
                if target == "core":
                    allowed = ".".join(parts[:3]) in JAX_FREE_CORE
            elif target in SIDE:
                allowed = FLOORS[folder] >= FLOORS["evals"]
            else:
                allowed = FLOORS[target] <= FLOORS[folder]
            if not allowed:
                found.append(name)
    return found


def source_files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_only_downward(path):
    folder = path.relative_to(ROOT).parts[0]
    assert folder in FLOORS or folder in SIDE, f"{folder} is no floor; add it to tests/test_floors.py and the docs"
    assert offences(folder, path.read_text()) == []


def test_only_sharding_touches_mesh_and_partition_spec():
    doors = []
    for path in source_files():
        for name in imports(path.read_text()):
            if name.startswith("jax") and name.split(".")[-1] in (
                "Mesh",
                "PartitionSpec",
                "NamedSharding",
                "shard_map",
            ):
                doors.append(path.name)
    assert set(doors) == {"sharding.py"}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("core", "from vidlang.ops import masking"),
        ("ops", "import vidlang.nn.layers"),
        ("models", "from vidlang.objectives.contrastive import loss"),
        ("objectives", "from vidlang.data.clips import ClipTable"),
        ("data", "import jax.numpy as jnp"),
        ("data", "def f():\n    from vidlang.core import sharding"),
        ("data", "from vidlang.datasets import synthetic"),
        ("train", "import tensorflow as tf"),
        ("serve", "from launch import train"),
    ],
)
def test_an_upward_import_is_found(folder, source):
    assert offences(folder, source)
