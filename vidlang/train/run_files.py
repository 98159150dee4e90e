"""The small files of a run: its config, and the metrics that mark a stage or the whole as finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vidlang.train.saved import all_steps

CONFIG, METRICS = "config.json", "metrics.json"


def is_finished(folder: Path) -> bool:
    """True for a stage that ended and still has a checkpoint to go on from."""
    return (folder / METRICS).is_file() and bool(all_steps(folder))


def read_metrics(folder: Path) -> dict[str, float]:
    """The last metrics of a finished stage or run."""
    return _read_json(folder / METRICS)


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config of a run, as plain values."""
    path = Path(workdir) / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} is not the folder of a run: it has no {CONFIG}. Give the --workdir of a training")
    return _read_json(path)


def write_json(path: Path, value: Any) -> None:
    """Written beside and renamed into place, so that nobody ever reads half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of text that is no UTF-8
        raise ValueError(f"{path} is not the JSON that a training writes: {error}; restore it or remove it") from error
