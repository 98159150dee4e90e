"""A run of seconds on sixteen real clips: --config=tests/launch/tiny_config.py:ROOT_OF_THE_CORPUS."""

from pathlib import Path

import ml_collections

import vidlang.datasets
import vidlang.models

# Its model is a test's own, found by name like any other.
EXTENSIONS = Path(__file__).resolve().parents[1] / "train" / "extensions"
for package in (vidlang.models, vidlang.datasets):
    folder = str(EXTENSIONS / package.__name__.split(".")[-1])
    if folder not in package.__path__:
        package.__path__.append(folder)


def get_config(root):
    corpus = {
        "name": "synthetic",
        "root": root,
        "train_videos": 4,
        "val_videos": 8,
        "long_videos": 0,
        "scenes_per_video": 4,
        "scene_seconds": 1.0,
        "size": 32,
        "workers": 1,
    }
    evaluation = {
        "name": "retrieval",
        "prefix": "val",
        "every": "20 steps",
        "data": {**corpus, "split": "val"},
        "clip": {"times": {"name": "middle"}},
        "batch_size": 8,
    }
    stage = {
        "name": "short",
        "duration": "60 steps",
        "batch_size": 8,
        "model": {"name": "tiny", "width": 16, "embed": 8},
        "dials": {"mask": 0.5},
        "data": {**corpus, "split": "train"},
        "clip": {
            "frames": 4,
            "size": 16,
            "times": {"name": "segments"},
            "crop": {"name": "center"},
            "text_length": 8,
        },
        "tokenizer": f"{root}/tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 8},
        "optimizer": {"learning_rate": 0.01, "warmup": "5 steps", "weight_decay": 0.1, "freeze": ()},
        "init_from": "",
        "checkpoint": {"every": "7 steps", "keep": 2},
        "evals": (evaluation,),
    }
    return ml_collections.ConfigDict(
        {
            "name": "tiny",
            "seed": 0,
            "mesh": {"data": -1},
            "runtime": {"workers": 0, "log_every": 10},
            "stages": (ml_collections.ConfigDict(stage),),
        }
    )
