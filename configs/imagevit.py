"""LongViViT, step 0: an image encoder beside a text encoder, which all of its video encoders start from.

    python -m launch.train --config=configs/imagevit.py --workdir=runs/imagevit            # ViT-B, BERT-medium
    python -m launch.train --config=configs/imagevit.py:vit_l --workdir=runs/imagevit_l    # ViT-L, BERT-base
    python -m launch.train --config=configs/imagevit.py:tiny --workdir=runs/imagevit_tiny

Data: image-text pairs in data/images (vidlang/datasets/image_text.py). The paper's own (ALIGN, LTIP) are not public.
From the paper: InfoNCE in batches of 8 thousand, 256 pixels, patches of 16, texts as the mean of their tokens. It does
not print the learning rate, steps, size of the joint space or temperature of this step: those of its next step are
taken, with 512 channels and a learned temperature from 0.07.
Pod: vit_l image on v5e:8x16 (docs/scale.md).
Cost: 8,192 images a step are 0.9 PFLOP with ViT-B (`launch.plan`): a second on 8 H100 at 40 % of their peak.
Result: the paper reports only what is trained from it: 39.9 % R@1 on MSR-VTT, text to video, for ViT-B after step 1.
The tiny variant takes 15 s on two cores: the right event among the first 10 of 90 for 22 % of texts (chance 11 %).
"""

from typing import Any

import ml_collections

from configs import parts

SIZES = ("vit_b", "vit_l")
STORE = "data/images"


def model(size: str, **video: Any) -> parts.Section:
    """The dual encoder of all stages; `video` are the settings of its video tower that a stage has of its own."""
    letter = "L" if size == "vit_l" else "B"
    text = {"B": "bert_medium", "L": "bert_base"}[letter]
    layers = {**parts.VIT[letter], "dtype": "bfloat16", "remat": "full", **video.pop("transformer", {})}
    return {
        "name": "dual_encoder",
        "video": {"transformer": layers, "pool": "mean", **video},
        "text": {
            "vocab": 30_528,  # BERT's 30,522, for meshes that cut the table
            "max_length": 64,
            "transformer": {**parts.TEXT[text], "dtype": "bfloat16"},
            "pool": "mean",
        },
        "embed": 512,
        "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
    }


def image_stage(size: str) -> parts.Section:
    """Contrastive training on images: clips of one frame."""
    return {
        "name": "image",
        "duration": "500000 steps",
        "batch_size": 8_192,
        "model": model(size, tubelet=(1, 16, 16)),
        "data": {"name": "image_text", "split": "train", "root": STORE, "store": f"{STORE}/store"},
        "clip": {
            "frames": 1,
            "size": 256,
            "times": {"name": "middle"},
            "crop": {"name": "center"},
            "text_length": 64,
        },
        "tokenizer": "data/bert-base-uncased/tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 256},
        "optimizer": {
            "learning_rate": 5e-5,
            "warmup": "1000 steps",
            "schedule": "cosine",
            "weight_decay": 1e-2,
            "clip_norm": 2.0,
        },
        "checkpoint": {"every": "5000 steps", "keep": 2},
        "evals": (),
    }


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage. Variants: vit_b (default), vit_l, tiny."""
    chosen = parts.variant(words, SIZES)
    stage = image_stage(parts.one_of(chosen, SIZES))
    if "tiny" in chosen:
        stage = tiny_image_stage(stage)
    return parts.recipe("imagevit", [stage], mesh=parts.mesh(fsdp=4 if chosen == {"vit_l"} else 1))


def tiny_image_stage(stage: parts.Section) -> parts.Section:
    """Stills of the corpus's events with their narrations."""
    evals = [parts.tiny_eval("retrieval", "narrations")]
    return parts.tiny(stage, data=parts.corpus("narrations"), evals=evals, frames=1)
