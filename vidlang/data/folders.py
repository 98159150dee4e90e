"""Folders that appear complete or not at all, whatever kills the process that makes them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def built_aside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its name, and the place of a folder there, when the block succeeds."""
    building = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if path.exists():
            retired = path.with_name(f"{path.name}.old-{os.getpid()}")
            os.replace(path, retired)
            os.replace(building, path)
            shutil.rmtree(retired)
        else:
            os.replace(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
