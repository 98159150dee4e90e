r"""AVION on EPIC-KITCHENS-100 multi-instance retrieval: the max-margin loss over relevant sentences.

    python -m launch.train --config=configs/avion_ek100_mir.py --workdir=runs/mir \
        '--config.stages[0].init_from=runs/avion'
    python -m launch.train --config=configs/avion_ek100_mir.py:vit_l --workdir=runs/mir_l \
        '--config.stages[0].init_from=avion:weights/avion_pretrain_lavila_vitl.pt' \
        '--config.stages[0].model.video.mean=(0.4248, 0.4578, 0.4082)'
    python -m launch.train --config=configs/avion_ek100_mir.py:tiny --workdir=runs/mir_tiny

It starts from the pre-training of configs/avion_ego4d.py, or from a checkpoint of theirs, whose mean of red is not
CLIP's; positions in time are interpolated from 4 frames to 16.
In training a clip's text is drawn from the sentences with relevancy above 0.1. Loss: the mean over all wrong pairs of
max(0, 0.2 - own cosine + other's), both directions; `objective.adaptive` makes the margin 0.4 times the relevancy.
From the paper: 100 epochs, AdamW with decay 0.01, learning rate from 1e-6 to 3e-5 in one epoch, then to 1e-5 by half a
cosine; 64 clips a GPU on eight (ViT-L 24); stochastic depth 0.1 (its code's default is 0: `transformer.drop_path`).
Data: data/epic with the retrieval annotations and a store (vidlang/datasets/epic_kitchens.py).
Pod: mir on v5e:8x8 (docs/scale.md).
Cost: the paper does not say; 100 epochs of 67,217 clips at 16 frames are 13,100 steps of 512.
Result: mAP 55.7 / 48.2 / 52.0 and nDCG 67.8 / 65.3 / 66.5 (video to text, text to video, mean) with ViT-B in the paper,
57.9 / 51.1 / 54.5 and 70.4 / 67.6 / 69.0 with ViT-L.
The tiny variant takes 35 s on two cores: the right event among the first 5 of 90 for 28 % of texts (chance 6 %).
"""

import ml_collections

from configs import parts
from configs.avion_ego4d import EPIC, SIZES, mir, model, tiny_stage
from configs.avion_ego4d import stage as pretraining

BATCH = {"vit_b": 512, "vit_l": 192}


def stage(size: str) -> parts.Section:
    """The fine-tuning."""
    before = pretraining(size, "lavila_train")
    built = model(size, drop_path=0.1)
    return {
        **before,
        "name": "mir",
        "init_from": "",
        "init_allow": ("^log_scale$",),  # which their checkpoints have
        "duration": "100 epochs",
        "batch_size": BATCH[size],
        "model": {**built, "video": {**built["video"], "extend_positions": "linear"}},
        "data": {"name": "epic_kitchens", "split": "mir_train", "above": 0.1, **EPIC},
        "clip": {**before["clip"], "frames": 16, "fields": ("relevancy",)},
        "objective": {"name": "max_margin"},
        "optimizer": {
            "learning_rate": 3e-5,
            "warmup": "1 percent",
            "warmup_from": 1e-6,
            "schedule": "cosine",
            "final_learning_rate": 1e-5,
            "weight_decay": 0.01,
            "clip_norm": None,
        },
        "checkpoint": {"every": "1 percent", "keep": 2, "best": "ek100/map"},
        "evals": (mir("5 percent", frames=16),),
    }


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage, two where it is tiny: there a pre-training comes first. Variants: vit_b (default), vit_l, tiny."""
    chosen = parts.variant(words, SIZES)
    size = parts.one_of(chosen, SIZES)
    if "tiny" not in chosen:
        return parts.recipe("avion_ek100_mir", [stage(size)])
    evals = [parts.tiny_eval("retrieval", "narrations")]
    small = parts.tiny(stage(size), data=parts.corpus("narrations"), evals=evals, frames=8)
    small["clip"] = {**small["clip"], "fields": ()}
    return parts.recipe("avion_ek100_mir", [tiny_stage(pretraining(size, "lavila_train")), small])
