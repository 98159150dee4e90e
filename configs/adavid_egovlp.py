r"""AdaVid-EgoVLP: one training that yields a video encoder for every budget, each layer at D, 3D/4, D/2 or D/4.

    python -m launch.train --config=configs/adavid_egovlp.py --workdir=runs/adavid \
        '--config.stages[0].init_from=egovlp:weights/egovlp.pth'                              # widths never widen (dec)
    python -m launch.train --config=configs/adavid_egovlp.py:inc --workdir=runs/adavid_inc    # widths never narrow
    python -m launch.train --config=configs/adavid_egovlp.py:tiny --workdir=runs/adavid_tiny
    python -m launch.sweep --workdir=runs/adavid                  # accuracy against operations at every preset

Model: EgoVLP's (ViT-B/16 with attention over time, then space; DistilBERT; 256 channels in common) with a schedule of
widths drawn anew each step, each of the 455 that never widen being as likely as any other. The paper does not say how
it draws: `dials.widths.draw` has the other ways, and `full` a share of steps at full width.
Objective: EgoNCE at temperature 0.05, both directions summed, each clip beside another of its minute of video.
From the paper: 10 epochs in batches of 160, "other hyperparameters as EgoVLP": AdamW at 3e-5 without decay, constant,
four frames of 224 pixels. (EgoVLP's released code raises the rate to 2e-4 after an epoch and draws no hard negatives
where its paper has them: `clip.pairs='none'` and `optimizer.learning_rate` are those switches.)
It starts from EgoVLP's weights. Without them, set `model.video.transformer.layout='timesformer'`, as the tiny variant
does: EgoVLP's own layers start their attention over time so that its queries and keys learn nothing for ever.
Data: data/ego4d with egoclip.csv, egomcq.json and a store of the videos (vidlang/datasets/egoclip.py, egomcq.py).
Pod: adaptive on v5e:4x8 (docs/scale.md).
Cost: 8 L40S in the paper, hours not told. Half of EgoVLP's operations a step on average: 8.7e10 a clip forward.
Result: EgoMCQ 90.8 % inter and 59.5 % intra at full width in the paper (EgoVLP 90.6, 57.2), little less at half the
operations, and a drop at d-192; inc stays below dec everywhere.
The tiny variant takes 2 minutes on two cores, EgoVLP's training first: of five narrations the right one for 79 % of
clips at full width, 75, 67 and 35 % at 3D/4, D/2 and D/4, 80 % at d-dec (chance 20 %).
"""

from typing import Any

import ml_collections

from configs import parts

ORDERS = ("dec", "inc")
EGO4D = {"root": "data/ego4d", "store": "data/ego4d/store", "bad_clips": "drop"}
# AdaVid's Table 1: what each order is measured at, and a schedule of the other order, never trained, beside it.
PRESETS = {
    "dec": ("d-768", "d-576", "d-384", "d-192", "d-dec", "d-dec-high", "d-dec-low", "d-inc"),
    "inc": ("d-768", "d-576", "d-384", "d-192", "d-inc", "d-inc-high", "d-inc-low", "d-dec"),
}
MIDDLE = {"times": {"name": "middle"}, "crop": {"name": "short_side", "side": 256, "crop": 224}}


def model(layout: str = "divided") -> parts.Section:
    """EgoVLP's dual encoder; CLIP's patches would have no bias, these have."""
    video = {**parts.VIT["B"], "layout": layout, "dtype": "bfloat16", "remat": "full"}
    text = {**parts.TEXT["distilbert"], "norm": "post", "epsilon": 1e-12, "dtype": "bfloat16"}
    return {
        "name": "dual_encoder",
        "video": {"transformer": video, "tubelet": (1, 16, 16), "pool": "cls", **parts.IMAGENET_PIXELS},
        "text": {
            "vocab": 30_528,
            "max_length": 32,
            "transformer": text,
            "pool": "cls",
            "norm_embeddings": True,
            "final_norm": False,
        },
        "embed": 256,
        "video_projection": {"bias": True},
        "text_projection": {"bias": True, "activation": "relu"},
        "temperature": {"init": 0.05, "max_scale": 100.0, "learnable": False},
    }


def egomcq(name: str, dials: parts.Section, split: str = "egomcq") -> parts.Section:
    """Multiple choice among clips, under these dials."""
    return {
        "name": "egomcq",
        "prefix": name,
        "every": "10 percent",
        "data": {"name": "egomcq", "split": split, **EGO4D},
        "clip": {**MIDDLE, "fields": ()},
        "dials": dials,
        "batch_size": 64,
    }


def stage(order: str) -> parts.Section:
    """The adaptive training."""
    return {
        "name": "adaptive",
        "duration": "10 epochs",
        "batch_size": 160,
        "model": model(),
        "init_from": "",
        "dials": {"widths": {"name": order, "draw": "sequences"}},
        "data": {"name": "egoclip", "split": "train", "group_seconds": 60.0, **EGO4D},
        "clip": {
            "frames": 4,
            "size": 224,
            "times": {"name": "segments"},
            "crop": {"name": "random_resized", "scale": (0.5, 1.0)},
            "text_length": 32,
            "pairs": "group",
            "fields": ("verbs", "nouns"),
        },
        "augment": {"flip": 0.5},
        "tokenizer": "data/distilbert-base-uncased/tokenizer.json",
        "objective": {"name": "ego_nce", "form": "code", "direction_reduction": "sum"},
        "optimizer": {
            "learning_rate": 3e-5,
            "schedule": "constant",
            "weight_decay": 0.0,
            "clip_norm": None,
        },
        "checkpoint": {"every": "5 percent", "keep": 2, "best": "d_768/accuracy_intra"},
        "evals": tuple(egomcq(preset.replace("-", "_"), {"widths": preset}) for preset in PRESETS[order]),
    }


def tiny_stage(full: parts.Section, order: str, **changes: Any) -> parts.Section:
    """Narrated events of the corpus, each beside one of the same scene."""
    evals = [
        parts.tiny_eval("multiple_choice", "multiple_choice", preset.replace("-", "_"), dials={"widths": preset})
        for preset in PRESETS[order]
    ]
    settings: dict[str, Any] = {"steps": 200, "batch_size": 32, "learning_rate": 3e-4, "evals": evals, **changes}
    learning = {**full, "model": model("timesformer")}  # from nothing
    small = parts.tiny(learning, data=parts.corpus("narrations"), **settings)
    return {**small, "optimizer": {**small["optimizer"], "clip_norm": 1.0}}


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage, two where it is tiny: there EgoVLP's training comes first. Variants: dec (default), inc, tiny."""
    chosen = parts.variant(words, ORDERS)
    order = parts.one_of(chosen, ORDERS)
    full = stage(order)
    if "tiny" not in chosen:
        return parts.recipe("adavid_egovlp", [full])
    before = tiny_stage({**full, "name": "egovlp", "dials": {}}, order, evals=())
    return parts.recipe("adavid_egovlp", [before, tiny_stage(full, order)])
