"""A stage whose features are extracted first trains in several processes as in one, and they share the files."""

import json
import subprocess

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
def config(stage_config, aggregator, corpus):
    """A stage on clips, and one on the features that the first one's parameters make of them; features lie in `out`."""
    data = {**corpus, "split": "train"}
    shared = {"tokenizer": corpus["root"] + "/tokenizer.json", "data": data, "batch_size": 8, "dials": {}, "evals": ()}

    def make(out):
        features = {"store": str(out), "variants": ["full"], "segments": SEGMENTS, "width": 8}
        extract = {"data": data, "out": str(out), "segments": SEGMENTS, "frames": 2, "shard_rows": SHARD}
        first = stage_config(**shared, duration="2 steps")
        second = stage_config(**shared, name="long", duration="2 steps", model=aggregator(SEGMENTS), extract=(extract,))
        second |= {"init_from": "stage:short", "init_allow": (".",), "clip": {"features": features, "text_length": 8}}
        return {"name": "tiny", "seed": 0, "mesh": {"data": -1}, "stages": (first, second)}

    return make


@pytest.fixture
def train(start_script):
    """train(count, config, workdir) -> what each of `count` processes says that it wrote."""

    def run(count, config, workdir):
        said = workdir.with_suffix(".json")
        said.write_text(json.dumps(config))
        processes = start_script(SCRIPT, count, said, workdir, stdout=subprocess.PIPE)
        try:
            outputs = [process.communicate(timeout=240) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * count, outputs
        return [[line for line in out.splitlines() if line.startswith("wrote")] for out, _ in outputs]

    return run


@pytest.mark.slow
def test_processes_share_the_files_of_a_stage_that_extracts(config, train, tmp_path):
    (alone,) = train(1, config(tmp_path / "one"), tmp_path / "alone")
    both = train(2, config(tmp_path / "two"), tmp_path / "both")
    assert len(alone) == -(-CLIPS // SHARD) and sorted(both[0] + both[1]) == sorted(alone)
    assert [len(files) for files in both] == [2, 2], "each made its half"
    kept, expected = FeatureStore(tmp_path / "two"), FeatureStore(tmp_path / "one")
    for row in range(CLIPS):
        np.testing.assert_allclose(kept.read(row, "full"), expected.read(row, "full"), atol=2e-3)
    assert read_metrics(tmp_path / "both")["loss"] == pytest.approx(read_metrics(tmp_path / "alone")["loss"], rel=1e-3)
