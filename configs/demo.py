"""The demo: a video-text dual encoder from H.264 files to measured retrieval, on two CPU cores.

    make demo
    python -m launch.train --config=configs/demo.py --workdir=runs/demo      # the training alone

Data: the embedded corpus. Shapes act one after another ("a red circle slides left then a blue square spins"); every
scene has a twin in which the same two events come in the other order, and both twins are in the batch, so that only
the order of events tells some pairs apart. The videos evaluated on, and their pairs of events, are never trained on.
Cost: 600 steps in about 6 minutes on two CPU cores, 2 GiB of memory, 40 MB of disk; the corpus takes 40 s, once.
Result: val/t2v_r1 0.74, val/v2t_r1 0.79, order/accuracy 1.00 (untrained 0.004, 0.004, 0.49).
"""

from typing import Any

import ml_collections

ROOT = "data/demo"


def evaluation(name: str, prefix: str, data: dict[str, Any]) -> ml_collections.ConfigDict:
    """An evaluator on whole, centred clips, before the first step and then every 150."""
    return ml_collections.ConfigDict(
        {
            "name": name,
            "prefix": prefix,
            "every": "150 steps",
            "data": data,
            "clip": {"times": {"name": "middle"}, "crop": {"name": "center"}},
            "batch_size": 60,
            "at_start": True,
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """One stage: contrastive training from scratch."""
    corpus = {
        "name": "synthetic",
        "root": ROOT,
        "annotations": "pairs",
        "train_videos": 400,
        "val_videos": 240,
        "long_videos": 2,
        "scenes_per_video": 6,
        "scene_seconds": 3.0,
        "colours": 6,
        "shapes": 4,
        "verbs": 6,
        "seed": 0,
    }
    held_out = {**corpus, "split": "val"}
    transformer = {"layers": 3, "width": 128, "heads": 4, "mlp": 512, "dtype": "float32"}
    stage = {
        "name": "contrastive",
        "duration": "600 steps",
        "batch_size": 64,
        "model": {
            "name": "dual_encoder",
            # Positions and words start large: at step 150 order is right in 97 % so, in 51 % from the usual 0.02.
            "video": {"transformer": transformer, "tubelet": (2, 16, 16), "pool": "mean", "position_std": 0.3},
            "text": {
                "vocab": 96,  # the corpus has 91 words; a multiple of 8 can be sharded
                "max_length": 16,
                "transformer": {**transformer, "layers": 2},
                "pool": "mean",
                "table_std": 0.2,
            },
            "embed": 128,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        },
        "dials": {"mask": 0.0},
        "data": {**corpus, "split": "train"},
        "clip": {
            "frames": 8,
            "size": 64,
            "times": {"name": "segments"},
            "crop": {"name": "random_resized", "scale": (0.7, 1.0), "ratio": (0.9, 1.1)},
            "text_length": 16,
            "pairs": "group",
        },
        "tokenizer": f"{ROOT}/tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 64},
        "optimizer": {
            "learning_rate": 1e-3,
            "warmup": "50 steps",
            "schedule": "cosine",
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "b2": 0.98,
        },
        "guard": {"skip": 0, "spike": 3.0},
        "checkpoint": {"every": "100 steps", "keep": 2, "best": "val/t2v_r1"},
        "evals": (evaluation("retrieval", "val", held_out), evaluation("multiple_choice", "order", held_out)),
    }
    config = ml_collections.ConfigDict(
        {
            "name": "demo",
            "seed": 0,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1, "slices": 0},
            "runtime": {"workers": 1, "log_every": 25, "compile_cache": "", "wandb": ""},
            "stages": (ml_collections.ConfigDict(stage),),
        }
    )
    return config.lock()
