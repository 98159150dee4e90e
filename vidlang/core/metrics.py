"""Scalars of a run in three places: a progress line for people, metrics.jsonl for programs, TensorBoard for curves.

Only process 0 writes. On a terminal one line is rewritten in place; elsewhere (a log file, CI) a plain line is printed
every so often, so that logs stay short and greppable.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from vidlang.core.tensorboard import EventFile


class Writer:
    """Writes scalars of one run; a resumed run continues its files without duplicate steps."""

    def __init__(
        self,
        folder: str | Path | None,
        *,
        total_steps: int,
        first_step: int = 0,
        label: str = "train",
        log_every: int = 50,
        stream: TextIO | None = None,
    ) -> None:
        """`folder` None writes to the console only; `first_step` > 0 drops what an interrupted run wrote after it."""
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._label, self._total, self._log_every = label, total_steps, max(1, log_every)
        self._first, self._began, self._width = first_step, time.monotonic(), 0
        self._jsonl: TextIO | None = None
        self._events: EventFile | None = None
        if folder is not None:
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            _drop_later_steps(folder / "metrics.jsonl", first_step)
            self._jsonl = open(folder / "metrics.jsonl", "a", encoding="utf-8")
            self._events = EventFile(folder, purge_step=first_step)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one record; values are anything `float` takes."""
        values = {name: float(value) for name, value in scalars.items()}
        if self._jsonl is not None and self._events is not None:
            self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
            self._jsonl.flush()
            self._events.write(step, values)

    def progress(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Shows `step` of the total with a few scalars and the time left."""
        done = step - self._first
        if not self._terminal and step % self._log_every and step != self._total:
            return
        elapsed = time.monotonic() - self._began
        left = elapsed / done * (self._total - step) if done > 0 else float("nan")
        shown = "  ".join(f"{name} {format_number(float(value))}" for name, value in scalars.items())
        text = f"{self._label} {step}/{self._total}  {shown}  ETA {format_seconds(left)}"
        if self._terminal:
            padding = " " * max(0, self._width - len(text))
            end = "\n" if step == self._total else ""
            self._stream.write(f"\r{text}{padding}{end}")
            self._width = 0 if end else len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Prints a line of its own, below the progress line."""
        self._stream.write(("\n" if self._width else "") + text + "\n")
        self._width = 0
        self._stream.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._width:
            self.say("")
        if self._jsonl is not None:
            self._jsonl.close()
        if self._events is not None:
            self._events.close()


class SilentWriter(Writer):
    """For processes other than the first: takes everything, shows and keeps nothing."""

    def __init__(self) -> None:
        self._jsonl, self._events, self._width = None, None, 0

    def progress(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Process 0 shows the progress."""

    def say(self, text: str) -> None:
        """Process 0 speaks."""


def read_history(path: str | Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl, in order; a last line cut short by a kill is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise ValueError(f"{path}, line {number + 1} is not JSON: {line[:80]!r}") from None
    return records


def _drop_later_steps(path: Path, first_step: int) -> None:
    """Leaves the records before `first_step`: the resumed run writes the later ones again."""
    if not path.exists():
        return
    kept = [record for record in read_history(path) if record["step"] < first_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(path)


def format_number(value: float) -> str:
    """Four significant digits, without needless exponents; "nan", "inf" and "-inf" as they are."""
    if not math.isfinite(value):
        return str(float(value))
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """'1h02m', '3m20s' or '45s'; '?' when unknown."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
