"""The run that faults are thrown at: --config=tests/train/chaos_config.py:CORPUS.

A file poison.json in the corpus holds the rows of batches whose loss shall be no number.
"""

import json
from pathlib import Path

import vidlang.objectives
from tests.launch import tiny_config

vidlang.objectives.__path__.append(str(Path(__file__).parent / "extensions" / "objectives"))
STEPS = 90


def get_config(root):
    config = tiny_config.get_config(root)
    file = Path(root) / "poison.json"
    stage = config.stages[0]
    stage.duration = f"{STEPS} steps"
    poisoned = tuple(map(tuple, json.loads(file.read_text()))) if file.is_file() else ()
    stage.objective = {"name": "poisoned", "chunk": 8, "batches": poisoned}
    stage.guard = {"skip": 2}
    stage.checkpoint = {"every": "4 steps", "keep": 3}
    stage.evals = ({**stage.evals[0], "every": "30 steps"},)
    # Each process holds half of the parameters, and may be the only one that cannot read its half.
    config.mesh = {"data": 1, "fsdp": 2}
    config.runtime.workers = 1
    # A worker that hangs is given up after some seconds.
    config.runtime.patience = {"decode_timeout": 5.0, "store_patience": 0.0, "stall_timeout": 15.0, "restarts": 5}
    return config
