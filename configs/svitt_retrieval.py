r"""SViTT fine-tuned for text-to-video retrieval on MSR-VTT, DiDeMo, Charades or Something-Something v2.

    python -m launch.train --config=configs/svitt_retrieval.py:msrvtt --workdir=runs/msrvtt \
        '--config.stages[0].init_from=runs/svitt'
    python -m launch.train --config=configs/svitt_retrieval.py:didemo --workdir=runs/didemo \
        '--config.stages[0].init_from=svitt:weights/svitt.pth'               # a checkpoint of theirs
    python -m launch.train --config=configs/svitt_retrieval.py:charades --workdir=runs/charades
    python -m launch.train --config=configs/svitt_retrieval.py:ssv2 --workdir=runs/ssv2
    python -m launch.train --config=configs/svitt_retrieval.py:tiny --workdir=runs/retrieval_tiny

It starts from a stage of configs/svitt.py (of as many frames), keeps its dials, and trains contrast and matching; words
are not masked. Retrieval is by cosines, of which the best 128 are looked at again by the fusion encoder, three clips of
four frames a video, joined by log-sum-exp.
From SViTT's code: AdamW at 1e-5 with decay 0.02, cosine. Neither the paper nor what is known of its code says how long
and in which batches: here 5 epochs of 128 on MSR-VTT, 10 on the smaller sets, a tenth of them to warm up.
Data: data/NAME with its annotations and store (docs/datasets.md).
Pod: msrvtt on v5e:4x8 (docs/scale.md).
Cost: 93.9 GFLOP a clip in the video tower, as in SViTT's stage of 4 frames, for some ten thousand videos an epoch.
Result: R@1 16.0 on Charades and 43.6 on SSv2 with the dense model in the paper, fine-tuned; hybrid "some 3 %" better.
The tiny variant takes 2 minutes on two cores, too short to learn much: the right scene among the first 5 of 32 for
20 % of texts (chance 16 %).
"""

from typing import Any

import ml_collections

from configs import parts
from configs.svitt import dials, model, tiny_stage
from configs.svitt import stage as pretraining

# Training split, testing split, epochs.
SETS = {
    "msrvtt": ("train9k", "test1k", 5),
    "didemo": ("train", "test", 10),
    "charades": ("train", "test", 10),
    "ssv2": ("train", "val", 10),
}
FRAMES = 4


def stage(name: str) -> parts.Section:
    """Contrast and matching on one set."""
    before = pretraining("hybrid", FRAMES)
    train, test, epochs = SETS[name]
    data: dict[str, Any] = {"name": name, "root": f"data/{name}", "store": f"data/{name}/store"}
    options: dict[str, Any] = {"rerank": 128, "ensemble": "lse"}
    if name == "ssv2":
        options["shared"] = True  # many videos have one sentence
    validation = {
        "name": "retrieval",
        "prefix": name,
        "every": "20 percent",
        "data": {**data, "split": test},
        "clip": {"times": {"name": "middle"}, "crop": {"name": "full"}, "views": 3},
        "options": options,
        "batch_size": 32,
    }
    contrast = ({"name": "contrastive", "targets": "equal_texts", "weight": 1.0}, {"name": "matching", "weight": 1.0})
    return {
        **before,
        "name": name,
        "duration": f"{epochs} epochs",
        "batch_size": 128,
        "model": {**model(), "words": {"rate": 0.0}},
        "init_from": "",
        "init_allow": ("^word_head/", "^video_encoder/(pooled_)?norm/"),
        "dials": dials("hybrid", FRAMES),
        "data": {**data, "split": train},
        "objective": {"name": "combined", "parts": contrast},
        "optimizer": {**before["optimizer"], "learning_rate": 1e-5, "final_learning_rate": 1e-7},
        "checkpoint": {"every": "10 percent", "keep": 2, "best": f"{name}/t2v_r1"},
        "evals": (validation,),
    }


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage, two where it is tiny: there a pre-training comes first. Variants: the sets (msrvtt first), tiny."""
    chosen = parts.variant(words, tuple(SETS))
    name = parts.one_of(chosen, tuple(SETS))
    full = stage(name)
    if "tiny" not in chosen:
        return parts.recipe(f"svitt_{name}", [full])
    views = {"times": {"name": "middle"}, "crop": {"name": "full"}, "views": 3}
    evals = [parts.tiny_eval("retrieval", "pairs", clip=views, options={"rerank": 8, "ensemble": "lse"})]
    small = parts.tiny(full, data=parts.corpus("pairs"), evals=evals, frames=FRAMES)
    before = tiny_stage(pretraining("hybrid", FRAMES), FRAMES, steps=30, evals=())
    return parts.recipe("svitt_retrieval", [before, small])
