"""On what the figures were measured: processor, cores, and the versions that decide them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "av", "numpy")


def machine() -> dict[str, str]:
    """Names and what they are here."""
    devices = jax.devices()
    found = {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    return {**found, **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"
