"""The run that faults are thrown at: --config=tests/train/chaos_config.py:CORPUS.

A file poison.json in the corpus holds the rows of batches whose loss shall be no number, and of those where it shall be
a spike.
"""

import json
from pathlib import Path

import vidlang.objectives
from tests.launch import tiny_config

vidlang.objectives.__path__.append(str(Path(__file__).parent / "extensions" / "objectives"))
PROCESSES, STEPS = 4, 72


def get_config(root):
    config = tiny_config.get_config(root)
    file = Path(root) / "poison.json"
    stage = config.stages[0]
    stage.duration = f"{STEPS} steps"
    poison = json.loads(file.read_text()) if file.is_file() else {"wrong": [], "spikes": []}
    wrong, spikes = (tuple(map(tuple, poison[name])) for name in ("wrong", "spikes"))
    stage.objective = {"name": "poisoned", "chunk": 8, "batches": wrong, "others": spikes}
    # Wide enough that no file of a process's part of a checkpoint is as small as the run's own files.
    stage.model = {"name": "tiny", "width": 192, "embed": 128}
    stage.guard = {"skip": 2}
    stage.checkpoint = {"every": "3 steps", "keep": 3}
    stage.evals = ({**stage.evals[0], "every": "30 steps"},)
    # Each process holds a part of the parameters, and may be the only one that cannot read or write it.
    config.mesh = {"data": 1, "fsdp": PROCESSES}
    config.runtime.workers = 1
    # A worker that hangs is given up after some seconds, one that is only slow on a busy machine is not.
    config.runtime.patience = {"decode_timeout": 10.0, "store_patience": 0.0, "stall_timeout": 15.0, "restarts": 9}
    return config
