"""What XLA is told before the first use of a device: flags for each platform, and where compiled programs are kept.

Flags of the user win: of two flags of one name XLA takes the last, and those of the environment come after these.
Neither flags here nor the kept programs change what is computed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

# (variable, flags), by platform. On CPUs what XLA does by itself is best.
FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    # Exchanges of parameters and gradients begin as early as they can, while products of matrices go on.
    "gpu": (
        "XLA_FLAGS",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
        ),
    ),
    # The same for TPUs, whose compiler hides exchanges by itself but these.
    "tpu": (
        "LIBTPU_INIT_ARGS",
        (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
        ),
    ),
}


def set_flags(environment: MutableMapping[str, str] = os.environ) -> str:
    """Sets the flags of the platform that JAX will choose, and returns its name. Before the first use of a device."""
    platform = likely_platform(environment)
    if platform in FLAGS:
        variable, flags = FLAGS[platform]
        environment[variable] = " ".join([*flags, environment.get(variable, "")]).strip()
    return platform


def likely_platform(environment: MutableMapping[str, str] = os.environ) -> str:
    """ "tpu", "gpu" or "cpu": asking JAX would already start it."""
    if asked := environment.get("JAX_PLATFORMS", "").split(",")[0].lower():
        return "gpu" if asked in ("gpu", "cuda", "rocm") else asked
    if importlib.util.find_spec("libtpu") is not None and any(Path("/dev").glob("accel[0-9]*")):
        return "tpu"
    if importlib.util.find_spec("libtpu") is not None and any(Path("/dev/vfio").glob("[0-9]*")):
        return "tpu"
    return "gpu" if shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists() else "cpu"


def keep_programs(where: str, workdir: Path) -> Path | None:
    """Keeps compiled programs on disk, so that a second start compiles none: "" in the run's folder, "none" nowhere.

    A place that the environment already names (JAX_COMPILATION_CACHE_DIR) is used instead of "". Returns the place.
    """
    if where == "none" or (not where and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return None
    folder = Path(where).expanduser().absolute() if where else workdir / "compiled"
    if jax.default_backend() == "cpu":
        folder = folder / f"cpu-{_instructions()}"
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # which may have begun elsewhere
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _instructions() -> str:
    """What tells CPUs apart on which one program cannot run on the other; JAX keys only by the platform's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:8]
