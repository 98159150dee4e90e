r"""AVION on EPIC-KITCHENS-100 action recognition: 3,806 actions, verbs and nouns by summing over them.

    python -m launch.train --config=configs/avion_ek100_cls.py --workdir=runs/cls \
        '--config.stages[0].init_from=runs/avion'
    python -m launch.train --config=configs/avion_ek100_cls.py:vit_l --workdir=runs/cls_l \
        '--config.stages[0].init_from=avion:weights/avion_pretrain_lavila_vitl.pt' \
        '--config.stages[0].model.video.mean=(0.4248, 0.4578, 0.4082)'
    python -m launch.train --config=configs/avion_ek100_cls.py:tiny --workdir=runs/cls_tiny

It starts from the pre-training of configs/avion_ego4d.py, or from a checkpoint of theirs, whose mean of red is not
CLIP's: the video tower is taken, the text tower is left, the head is new, N(0, 0.01).
From the paper: 100 epochs, SGD with momentum 0.9 and decay 5e-4 (its code: 4e-5), learning rate 1e-6 to 0.012 in one
epoch (code: two), then to 1e-5 by half a cosine; 64 clips a GPU on eight (ViT-L 24), 16 frames, stochastic depth 0.1,
dropout 0.5 before the head, label smoothing 0.1, mixup 0.8, mirrored half of the time. Its code also mixes by cutmix,
half of the time, and never mirrors: `augment` says which.
Data: data/epic with the annotations of EPIC-KITCHENS-100 and a store (vidlang/datasets/epic_kitchens.py).
Pod: cls on v5e:8x8 (docs/scale.md).
Cost: the paper does not say; 100 epochs of 67,217 clips at 16 frames are 13,100 steps of 512.
Result: top-1 of verbs / nouns / actions 70.0 / 59.4 / 49.5 in the paper with ViT-B, 73.0 / 65.4 / 54.4 with ViT-L.
The tiny variant takes 1 minute on two cores: the right action of 288 among the first 5 for 31 % of clips.
"""

from typing import Any

import ml_collections

from configs import parts
from configs.avion_ego4d import EPIC, SIZES, tiny_stage, video
from configs.avion_ego4d import stage as pretraining
from vidlang.datasets.synthetic.grammar import COLOURS, SHAPES

BATCH = {"vit_b": 512, "vit_l": 192}
ACTIONS = 3_806
VERBS = 6  # of the tiny corpus


def stage(size: str) -> parts.Section:
    """The fine-tuning."""
    before = pretraining(size, "lavila_train")
    validation: dict[str, Any] = {
        "name": "classification",
        "prefix": "ek100",
        "every": "5 percent",
        "data": {"name": "epic_kitchens", "split": "cls_val", **EPIC},
        "clip": {"times": {"name": "middle"}, "crop": {"name": "center"}},
        "options": {
            "heads": {"label": ACTIONS},
            "marginalize": {"verb_label": 97, "noun_label": 300},
            "tables": ({"name": "epic_kitchens", "split": "cls_train", **EPIC},),
        },
        "batch_size": 64,
    }
    return {
        "name": "cls",
        "duration": "100 epochs",
        "batch_size": BATCH[size],
        "model": {
            "name": "classifier",
            "video": {**video(size, drop_path=0.1), "extend_positions": "linear"},
            "heads": {"label": ACTIONS},
            "dropout": 0.5,
            "head_std": 0.01,
        },
        "init_from": "",
        "init_allow": ("^head_", "^text_encoder/", "_projection/", "^log_scale$"),
        "data": {"name": "epic_kitchens", "split": "cls_train", **EPIC},
        "clip": {**parts.without(before["clip"], "text_length"), "frames": 16, "fields": ("label",)},
        "augment": {"flip": 0.5, "mixup": {"probability": 1.0, "alpha": 0.8}},
        "tokenizer": "",
        "objective": {"name": "classification", "heads": {"label": 1.0}, "label_smoothing": 0.1},
        "optimizer": {
            "name": "sgd",
            "momentum": 0.9,
            "learning_rate": 0.012,
            "warmup": "1 percent",
            "warmup_from": 1e-6,
            "schedule": "cosine",
            "final_learning_rate": 1e-5,
            "weight_decay": 5e-4,
            "clip_norm": None,
        },
        "checkpoint": {"every": "1 percent", "keep": 2, "best": "ek100/label_top1"},
        "evals": (validation,),
    }


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage, two where it is tiny: there a pre-training comes first. Variants: vit_b (default), vit_l, tiny."""
    chosen = parts.variant(words, SIZES)
    size = parts.one_of(chosen, SIZES)
    if "tiny" not in chosen:
        return parts.recipe("avion_ek100_cls", [stage(size)])
    actions = VERBS * len(COLOURS) * len(SHAPES)
    full = stage(size)
    full["model"] = {**full["model"], "heads": {"label": actions}}
    evals = [parts.tiny_eval("classification", "classes", options={"heads": {"label": actions}})]
    small = parts.tiny(full, data=parts.corpus("classes"), evals=evals, frames=8, learning_rate=0.05, steps=80)
    return parts.recipe("avion_ek100_cls", [tiny_stage(pretraining(size, "lavila_train")), small])
