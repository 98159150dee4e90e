"""How long a call of an exported file takes on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.serve.export.folder import reader

REPEATS = 20


def measure(folder: Path, card: Mapping[str, Any], method: str, batch: int = 1, repeats: int = REPEATS) -> float:
    """Median seconds of a call."""
    own = card["methods"][method]
    answer = reader(folder / own["files"][0], card["format"], own["output"]["name"])
    arrays = {each["name"]: np.ones((batch, *each["shape"][1:]), each["dtype"]) for each in own["inputs"]}
    answer(arrays)  # the first one compiles
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer(arrays)
        took.append(time.perf_counter() - start)
    return statistics.median(took)
