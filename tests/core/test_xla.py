"""XLA's flags: the user's come last, XLA knows them all; and programs that are kept are not compiled again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidlang.core import xla

COMPILE = """
import sys
from pathlib import Path
import jax
from vidlang.core import xla
misses = []
jax.monitoring.register_event_listener(lambda event, **_: misses.append(event) if event.endswith("cache_misses") else 0)
where = xla.keep_programs(sys.argv[1], Path(sys.argv[2]))
x = jax.jit(lambda x: (x @ x).sum() + 3)(jax.numpy.ones((16, 16)))
print(where, float(x), len(misses))
"""


def run(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(xla.__file__).split("/vidlang/")[0], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_second_start_compiles_nothing(tmp_path):
    place, value, missed = run(COMPILE, "", str(tmp_path))
    assert place.startswith(f"{tmp_path}/compiled/cpu-") and int(missed) > 0
    assert run(COMPILE, "", str(tmp_path)) == [place, value, "0"]


def test_a_program_that_was_cut_short_is_compiled_again(tmp_path):
    """As a kill leaves it, or a full disk."""
    first = run(COMPILE, "", str(tmp_path))
    for path in filter(Path.is_file, (tmp_path / "compiled").rglob("*")):
        os.truncate(path, path.stat().st_size // 2)
    assert run(COMPILE, "", str(tmp_path))[:2] == first[:2]


@pytest.mark.slow
def test_where_programs_are_kept(tmp_path):
    place, value, _ = run(COMPILE, str(tmp_path / "own"), str(tmp_path / "run"))
    assert place.startswith(f"{tmp_path}/own/cpu-") and not (tmp_path / "run").exists()
    assert run(COMPILE, "none", str(tmp_path / "run"))[:2] == ["None", value]
    given = {"JAX_COMPILATION_CACHE_DIR": f"{tmp_path}/given", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert run(COMPILE, "", str(tmp_path / "run"), **given)[0] == "None"
    assert list((tmp_path / "given").iterdir()) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("platform", xla.FLAGS)
def test_flags_of_the_user_come_last(platform):
    variable, flags = xla.FLAGS[platform]
    environment = {"JAX_PLATFORMS": f"{platform},cpu", variable: "--mine=1"}
    assert xla.set_flags(environment) == platform
    assert environment[variable].split() == [*flags, "--mine=1"]


@pytest.mark.parametrize(("asked", "found"), [("cuda", "gpu"), ("tpu", "tpu"), ("cpu", "cpu"), ("cpu,cuda", "cpu")])
def test_the_platform_that_was_asked_for(asked, found):
    assert xla.likely_platform({"JAX_PLATFORMS": asked}) == found


def test_nothing_is_set_for_cpus():
    assert xla.set_flags(environment := {"JAX_PLATFORMS": "cpu"}) == "cpu"
    assert environment == {"JAX_PLATFORMS": "cpu"}


def test_xla_knows_its_flags_for_gpus():
    """It ends a process that gives it an unknown one."""
    flags = " ".join(xla.FLAGS["gpu"][1])
    assert run("import jax; print(len(jax.devices()))", XLA_FLAGS=flags) == ["1"]


def test_libtpu_knows_its_flags(libtpu, repository):
    script = """
from jax.experimental import topologies
print(len(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices))
"""
    flags = " ".join(xla.FLAGS["tpu"][1])
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    paths = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    assert run(script, LIBTPU_INIT_ARGS=flags, **quiet, **paths) == ["4"]
