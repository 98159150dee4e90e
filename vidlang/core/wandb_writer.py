"""Scalars of a run sent to Weights & Biases as well, where a run asks for it and its package is installed.

It gets what TensorBoard gets. Whether a machine sends at once, later or nothing is said to wandb itself, by its own
environment (WANDB_MODE, WANDB_API_KEY, ...).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlang.core.metrics import Writer, read_history

# Says, in the folder of a stage, under which id it is known there: a continued one goes on with its curves.
FILE = "wandb.json"
# Says up to which step each scalar was sent there, of a stage that was begun again.
SENT = "wandb_sent.json"
STEP = "step"


def require(project: str) -> None:
    """ValueError when a project is named and there is no wandb to send to it."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"runtime.wandb is {project!r}, and wandb is not installed here; pip install wandb, or leave "
            'runtime.wandb at ""'
        )


class WandbWriter(Writer):
    """A writer that also sends each record to a project, a stage as one run of it in the group of its training."""

    def __init__(
        self, folder: str | Path, *, project: str, config: Mapping[str, Any], label: str = "train", **options: Any
    ) -> None:
        """config: that of the training, shown beside the curves. options: those of `Writer`."""
        require(project)
        self._run = _start(Path(folder).absolute(), project, config, label)
        # Before the files lose what a resumed run writes again.
        self._sent = _sent(Path(folder), project)
        super().__init__(folder, label=label, **options)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one record, here and there; there only once, for what is sent cannot be taken back."""
        super().write(step, scalars)
        new = {name: float(value) for name, value in scalars.items() if step > self._sent.get(name, -1)}
        # The step is a value like others: wandb's own only ever rises, and a resumed run goes back to its checkpoint.
        if new:
            self._run.log({STEP: step, **new})

    def close(self) -> None:
        """Closes the files, and waits until all is sent."""
        super().close()
        self._run.finish()


def _start(folder: Path, project: str, config: Mapping[str, Any], label: str) -> Any:
    wandb: Any = importlib.import_module("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    name = {"name": f"{folder.parent.name}/{label}", "group": folder.parent.name, "dir": str(folder)}
    try:
        run = wandb.init(
            project=project, id=_identity(folder / FILE, project), resume="allow", config=dict(config), **name
        )
    except wandb.Error as error:
        raise ValueError(
            f"Weights & Biases cannot take the project {project!r} ({' '.join(str(error).split())}); run wandb login, "
            'set WANDB_MODE=offline, or set runtime.wandb to ""'
        ) from error
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return run


def _identity(path: Path, project: str) -> str:
    """The id of this stage in the project; another project begins anew."""
    known: dict[str, str] = _read(path)
    if project not in known:
        known[project] = secrets.token_hex(8)
        _write(path, known)
    return known[project]


def _sent(folder: Path, project: str) -> dict[str, int]:
    """The last step at which each scalar was sent, by all starts of the stage; none if they sent elsewhere."""
    known, sent = _read(folder / SENT), {}
    if known.get("project") == project:
        sent = dict(known["sent"])
        for record in read_history(folder / "metrics.jsonl"):
            for name in record.keys() - {STEP}:
                sent[name] = max(int(record[STEP]), sent.get(name, -1))
    _write(folder / SENT, {"project": project, "sent": sent})
    return sent


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON that a training writes: {error}; remove it") from error


def _write(path: Path, values: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(values) + "\n", encoding="utf-8")
    partial.replace(path)
