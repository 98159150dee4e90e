"""What this process may use of its machine: cores and memory, by the limits of its container too."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def available_cores() -> int:
    """Cores that this process may run on at once, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(cores, 1)


def available_memory() -> float:
    """Bytes that can still be taken; infinite where nothing tells."""
    free = math.inf
    for line in _read(MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _read(CGROUP / "memory.max").strip(), _read(CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free


def _read(path: Path) -> str:
    # Not every system has these files.
    return path.read_text() if path.is_file() else ""
