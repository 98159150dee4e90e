"""Every test sees eight fake CPU devices, strict rank promotion and a repository root on its path."""

import atexit
import contextlib
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Before the first import of jax: devices are counted once a process.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little: the compiler's backend optimises nothing, its older emitters take half the time
# of the newer ones, no program is split for many threads, and what one test has compiled, no other, no other worker and
# no process of a test compiles again.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}".strip()
# Of two exchanges that do not wait for each other, one inside a loop, fake devices may begin either first. Each holds a
# thread until all have come, and by default there are as many threads as devices: none is left for the one who must.
os.environ["PJRT_NPROC"] = "32"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vidlang-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Files with tests of minutes.
LONGEST = ("test_chaos.py", "test_recipes.py")

# Grain's worker processes need parsed flags; outside absl.app nothing else parses them.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items) -> None:
    """The slow tests first, the longest at the very front: begun last, one would keep a single worker busy."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name not in LONGEST))


def pytest_collection_finish() -> None:
    """Keeps the garbage collector off what was imported: while JAX traces, it would walk through that for ever."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_priority():
    """No test may leave its process, and so the processes of later tests, with another claim on the machine."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, "a library has given this process real-time priority"


@pytest.fixture
def killed_at(monkeypatch):
    """killed_at(n, module) is a context that a kill ends when the n-th file is written and not yet in its place."""

    @contextlib.contextmanager
    def killing(moment, module):
        replaced = 0

        def replace(source, target, *, to=os.replace):
            nonlocal replaced
            replaced += 1
            if replaced == moment:
                raise KeyboardInterrupt
            to(source, target)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(f"{module}.os.replace", replace)
            yield

    return killing


@pytest.fixture
def libtpu(monkeypatch):
    """Lets a test, and what it starts, compile for TPUs; skips where that cannot be.

    `make test` puts libtpu into a folder of its own: on the usual path, every process that imports jax would begin with
    looking for a TPU.
    """
    folder = Path(sys.prefix) / "plan"
    if importlib.util.find_spec("libtpu") is None:
        if not (folder / "libtpu").is_dir():
            pytest.skip("libtpu is not installed; `make test` brings it, or the extra 'plan'")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root folder of the checkout."""
    return ROOT
