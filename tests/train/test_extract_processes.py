"""A stage whose features are extracted first trains in several processes as in one, and they share the files."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from vidlang.data.features.store import FeatureStore
from vidlang.train.run_files import read_metrics

SEGMENTS, CLIPS, SHARD = 3, 16, 5
# As in test_processes: left by os._exit, since with gloo jax was seen to spin for ever when Python had ended.
SCRIPT = """
import json
import os
import sys
import jax
rank, count, port, config, workdir, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 8 // int(count))
if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(rank))
sys.path.insert(0, folder)
import tiny_config
from vidlang.data.features import writer
write = writer.FeatureWriter.write
def written(self, name, file, *others):
    print("wrote", file, flush=True)
    return write(self, name, file, *others)
writer.FeatureWriter.write = written
from vidlang.train.stages import train
with open(config) as file:
    train(json.load(file), workdir)
jax.distributed.shutdown() if int(count) > 1 else None
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture
def config(stage_config, corpus, tmp_path):
    """A stage on clips, and one on the features that the first one's parameters make of them; features lie in `out`."""
    data = {**corpus, "split": "train"}
    shared = {"tokenizer": corpus["root"] + "/tokenizer.json", "data": data, "batch_size": 8, "dials": {}, "evals": ()}
    transformer = {"layers": 1, "width": 16, "heads": 2, "mlp": 16, "dtype": "float32"}

    def make(out):
        features = {"store": str(out), "variants": ["full"], "segments": SEGMENTS, "width": 8}
        extract = {"data": data, "out": str(out), "segments": SEGMENTS, "frames": 2, "shard_rows": SHARD}
        model = {
            "name": "aggregator",
            "features": 8,
            "segments": SEGMENTS,
            "transformer": transformer,
            "text": {"vocab": 128, "max_length": 8, "transformer": transformer, "pool": "mean"},
            "embed": 8,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        }
        first = stage_config(**shared, duration="2 steps")
        second = stage_config(**shared, name="long", duration="2 steps", model=model, extract=(extract,))
        second |= {"init_from": "stage:short", "init_allow": (".",), "clip": {"features": features, "text_length": 8}}
        return {"name": "tiny", "seed": 0, "mesh": {"data": -1}, "stages": (first, second)}

    return make


def train(repository, count, config, workdir):
    """What each of `count` processes printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(repository)}
    said = workdir.with_suffix(".json")
    said.write_text(json.dumps(config))
    arguments = [str(count), str(port), str(said), str(workdir), str(repository / "tests" / "launch")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, outputs
    return [[line for line in out.splitlines() if line.startswith("wrote")] for out, _ in outputs]


@pytest.mark.slow
def test_processes_share_the_files_of_a_stage_that_extracts(config, repository, tmp_path):
    (alone,) = train(repository, 1, config(tmp_path / "one"), tmp_path / "alone")
    both = train(repository, 2, config(tmp_path / "two"), tmp_path / "both")
    assert len(alone) == -(-CLIPS // SHARD) and sorted(both[0] + both[1]) == sorted(alone)
    assert [len(files) for files in both] == [2, 2], "each made its half"
    kept, expected = FeatureStore(tmp_path / "two"), FeatureStore(tmp_path / "one")
    for row in range(CLIPS):
        np.testing.assert_allclose(kept.read(row, "full"), expected.read(row, "full"), atol=2e-3)
    assert read_metrics(tmp_path / "both")["loss"] == pytest.approx(read_metrics(tmp_path / "alone")["loss"], rel=1e-3)
