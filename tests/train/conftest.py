"""Stages small enough to train in a test, batches for them, and meshes of one and of eight devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import vidlang.models
from vidlang.core.sharding import AXES, make_mesh
from vidlang.train.recipe import read_recipe

# A test model is found by name, as anybody's own would be.
vidlang.models.__path__.append(str(Path(__file__).parent / "extensions" / "models"))

TRANSFORMER = {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
TINY = {"name": "tiny", "width": 16, "embed": 8}
DUAL_ENCODER = {
    "name": "dual_encoder",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
    "text": {"vocab": 64, "max_length": 8, "transformer": TRANSFORMER, "pool": "mean"},
    "embed": 8,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}


@pytest.fixture(scope="session")
def stage_config():
    """A stage with everything that a config may say about one, as plain values; keywords replace sections."""

    def make(**changes):
        stage = {
            "name": "short",
            "duration": "4 steps",
            "batch_size": 16,
            "model": TINY,
            "dials": {"mask": 0.5},
            "data": {"name": "synthetic", "split": "train"},
            "clip": {
                "frames": 4,
                "size": 16,
                "times": {"name": "segments"},
                "crop": {"name": "center"},
                "text_length": 8,
            },
            "tokenizer": "tokenizer.json",
            "objective": {"name": "contrastive", "chunk": 2},
            "optimizer": {"learning_rate": 0.01, "warmup": "1 step", "weight_decay": 0.1},
            "checkpoint": {"every": "2 steps", "keep": 3},
        }
        return stage | changes

    return make


@pytest.fixture(scope="session")
def dual_encoder():
    """The real model in small; its step takes most of a minute to compile."""
    return DUAL_ENCODER


@pytest.fixture(scope="session")
def stage(stage_config):
    """The same, read."""

    def make(**changes):
        return read_recipe({"name": "tiny", "seed": 0, "stages": (stage_config(**changes),)}).stages[0]

    return make


@pytest.fixture(scope="session")
def fields():
    """Shapes of a batch of sixteen."""
    return {
        "video_BTHWC": jax.ShapeDtypeStruct((16, 4, 16, 16, 3), np.uint8),
        "text_BL": jax.ShapeDtypeStruct((16, 8), np.int32),
    }


@pytest.fixture(scope="session")
def host_batch():
    """A batch of noise that is a function of its number."""

    def make(number):
        rng = np.random.default_rng(number)
        return {
            "video_BTHWC": rng.integers(0, 256, (16, 4, 16, 16, 3), np.uint8),
            "text_BL": rng.integers(1, 64, (16, 8), np.int32),
        }

    return make


@pytest.fixture(scope="session")
def mesh_of():
    """A mesh by its sizes; {} is a single device."""

    def make(**sizes):
        if sizes:
            return make_mesh(sizes)
        return jax.make_mesh((1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:1])

    return make


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The `data` section of sixteen real clips, without the split."""
    root = str(tmp_path_factory.mktemp("corpus"))
    sizes = {"train_videos": 4, "val_videos": 8, "long_videos": 0, "scenes_per_video": 4, "scene_seconds": 1.0}
    return {"name": "synthetic", "root": root, **sizes, "size": 32, "workers": 1}


@pytest.fixture(scope="session")
def recipe(corpus, stage_config):
    """A whole config of one stage on real clips; keywords replace sections of the stage."""

    def make(*, seed=0, mesh=None, **changes):
        real = {
            "batch_size": 8,
            "data": {**corpus, "split": "train"},
            "tokenizer": corpus["root"] + "/tokenizer.json",
            "evals": (retrieval(corpus),),
        }
        stages = (stage_config(**(real | changes)),)
        return {"name": "tiny", "seed": seed, "mesh": mesh or {"data": -1}, "stages": stages}

    return make


@pytest.fixture(scope="session")
def aggregator():
    """The model section of an aggregator of features of eight numbers, of so many segments."""

    def make(segments):
        transformer = {"layers": 1, "width": 16, "heads": 2, "mlp": 16, "dtype": "float32"}
        return {
            "name": "aggregator",
            "features": 8,
            "segments": segments,
            "transformer": transformer,
            "text": {"vocab": 128, "max_length": 8, "transformer": transformer, "pool": "mean"},
            "embed": 8,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        }

    return make


@pytest.fixture(scope="session")
def start_script(repository):
    """Starts a Python text as `count` processes, which get (rank, count, port, others..., folder of tiny_config)."""

    def start(script, count, *others, stdout=subprocess.DEVNULL):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        # How many devices there are is said to each process by itself.
        flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(repository)}
        arguments = [str(count), str(port), *map(str, others), str(repository / "tests" / "launch")]
        return [
            subprocess.Popen(
                [sys.executable, "-c", script, str(rank), *arguments],
                env=environment,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    return start


def retrieval(corpus):
    clip = {"times": {"name": "middle"}}
    return {"name": "retrieval", "every": "2 steps", "data": {**corpus, "split": "val"}, "batch_size": 8, "clip": clip}
