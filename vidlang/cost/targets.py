"""For what a step is compiled: the GPUs of this process, fake CPU devices, or a TPU pod that nobody has to have.

CPU and TPU programs are compiled by a child process: how many CPU devices there are, and whether TPUs are looked for,
is decided once in a process, and this one goes on as it was.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from vidlang.core.sharding import SLICES, Mesh, compiling_for, make_mesh
from vidlang.cost.collectives import Collective
from vidlang.cost.program import StepMemory, build_program, step_memory
from vidlang.train.recipe import Recipe

FORMS = "cpu, cpu:DEVICES, gpu or tpu:TOPOLOGY, as in tpu:v5e:2x2"
# Lines of the child that are answers begin so; libraries print others.
ANSWER = "vidlang-cost: "
# Nobody runs these programs: memory is planned before machine code is emitted and optimised, which takes the longest.
# The older emitters plan the same but for a few bytes, in less than half the time.
PLAN_ONLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@dataclass(frozen=True)
class Target:
    """A platform, and which devices of it: a number of CPUs ("" is one), a TPU topology, or "" for the GPUs here.

    effort: how hard a TPU's compiler tries to make the program fast, from -1 to 1. Training compiles with 0; -1 takes
    half the time or less.
    """

    platform: str
    devices: str = ""
    effort: float = 0.0

    @property
    def chip(self) -> str:
        """The TPU generation, which is also a card's name; "" for others."""
        return self.devices.split(":")[0] if self.platform == "tpu" else ""

    @property
    def count(self) -> int:
        """How many devices: of TPUs, those of one slice."""
        if self.platform == "tpu":
            sizes = self.devices.rpartition(":")[2].split("x")
            if not all(size.isdigit() for size in sizes):
                raise ValueError(f"a TPU topology ends in its sizes, as in v5e:2x2; found {self.devices!r}")
            return math.prod(int(size) for size in sizes)
        return jax.device_count() if self.platform == "gpu" else int(self.devices or 1)


@dataclass(frozen=True)
class Refused:
    """A setting that cannot be compiled, and why."""

    reason: str


def read_target(text: str) -> Target:
    """The target that a flag names; ValueError for one that cannot be served here."""
    platform, _, devices = text.partition(":")
    if platform not in ("cpu", "gpu", "tpu") or (platform == "gpu" and devices) or (platform == "tpu" and not devices):
        raise ValueError(f"unknown target {text!r}; there are {FORMS}")
    if platform == "cpu" and devices and not (devices.isdigit() and int(devices)):
        raise ValueError(f"cpu:DEVICES takes a number of devices, as in cpu:8; found {text!r}")
    if platform == "gpu" and jax.default_backend() != "gpu":
        raise ValueError(
            f"the target gpu needs a GPU that JAX uses, and here it uses {jax.default_backend()}; choose {FORMS}"
        )
    if platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "the target tpu compiles with libtpu, which is not installed; pip install 'vidlang[plan]' brings it, and "
            "no TPU is needed"
        )
    return Target(platform, devices)


def measure(jobs: Sequence[tuple[Recipe, int]], target: Target) -> Iterator[StepMemory | Refused]:
    """Memory of the train step of each (recipe, number of its stage), in their order, as each is compiled."""
    if target.platform == "gpu":
        for recipe, index in jobs:
            yield _answer(recipe, index, make_mesh)
        return
    yield from _ask_child(jobs, target)


def _answer(recipe: Recipe, index: int, mesh: Any) -> StepMemory | Refused:
    try:
        return step_memory(build_program(recipe, index), mesh(recipe.mesh))
    except ValueError as error:
        return Refused(str(error))
    except jax.errors.JaxRuntimeError as error:
        # A TPU's compiler knows how much memory a chip has, and gives up beyond it.
        if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error):
            raise
        used = re.search(r"Used \S+ of \S+|total memory required .*", str(error))
        return Refused(f"it does not fit: {used[0] if used else str(error).splitlines()[0]}")


def _ask_child(jobs: Sequence[tuple[Recipe, int]], target: Target) -> Iterator[StepMemory | Refused]:
    # No TPU is used: none is asked for its metadata, and no other process is kept from one.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **quiet}
    environment.pop("XLA_FLAGS", None)
    if target.platform == "cpu":
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={target.devices or 1} {PLAN_ONLY}"
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile() as question:
        pickle.dump((list(jobs), target), question)
        question.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "vidlang.cost.targets"],
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if line.startswith(ANSWER):
                    found = json.loads(line.removeprefix(ANSWER))
                    if "topology" in found:
                        raise ValueError(found["topology"])
                    yield _read(found)
            if child.wait():
                errors.seek(0)
                raise RuntimeError(f"compiling for {target.platform} ended with {child.returncode}: {errors.read()}")
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _read(found: dict[str, Any]) -> StepMemory | Refused:
    if "reason" in found:
        return Refused(**found)
    exchanges = tuple(Collective(**each) for each in found.pop("exchanges"))
    return StepMemory(**found, exchanges=exchanges)


def _child() -> None:
    """Answers one line for each job that the standard input holds."""
    jobs, target = pickle.load(sys.stdin.buffer)
    jax.config.update("jax_exec_time_optimization_effort", target.effort)
    with compiling_for(target.platform):
        for recipe, index in jobs:
            try:
                mesh = _topology_mesh(target, recipe) if target.platform == "tpu" else make_mesh
            except TopologyError as error:
                print(ANSWER + json.dumps({"topology": str(error)}), flush=True)
                return
            print(ANSWER + json.dumps(asdict(_answer(recipe, index, mesh))), flush=True)


class TopologyError(ValueError):
    """There are no TPUs of this name."""


def _topology_mesh(target: Target, recipe: Recipe) -> Callable[[Mapping[str, int]], Mesh]:
    """A function from a config's mesh to one over the chips of a topology, which are no devices here.

    The topology is that of one slice; the config says of how many the mesh is.
    """
    slices = max(1, int(recipe.mesh.get(SLICES, 1)))
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=target.devices, **several)
    except Exception as error:  # whatever the plugin raises is about the name
        raise TopologyError(f"no TPU topology {target.devices!r}: {' '.join(str(error).split())}") from error
    return functools.partial(make_mesh, devices=topology.devices)


if __name__ == "__main__":
    _child()
