"""LongViViT: from 16 frames to 128 (ViT-B) or 256 (ViT-L), three quarters masked, only the last four layers trained.

    python -m launch.train --config=configs/longvivit.py --workdir=runs/longvivit              # ViT-B, 128 frames
    python -m launch.train --config=configs/longvivit.py:vit_l --workdir=runs/longvivit_l      # ViT-L, 256 frames
    python -m launch.train --config=configs/longvivit.py:tiny --workdir=runs/longvivit_tiny
    python -m launch.plan --config=configs/longvivit.py --stages=long --target=cpu --frames=64,128,256 --batch_size=1

Stages: image and short as in configs/eff_shortvivit.py (an encoder that exists goes into `init_from` of the last), then
long: videos of minutes with summaries, one frame a second. Positions in time repeat once more; stems, positions, the
first layers and the text tower are frozen, so the first layers keep nothing for the backward pass.
From the paper: 50 thousand steps, learning rate 5e-5, cosine. Its Table 4 has one cell for the batches of both steps,
512; what is frozen of the text tower is not said: all of it here, but for its projection. 128 frames are 16,384 tokens
with these tubelets (the paper's 32.7 thousand are 256 frames).
Data: HowTo100M's long videos with summaries of your own; those of the paper are not public.
Pods: vit_l long on v5e:16x16, long on v5e:8x16 (docs/scale.md).
Cost: the paper trained ViT-L on 256 TPUv3 chips for a day; 128 frames fit a device of 16 GB (docs/cost.md).
Result: YouCook2 summaries ROUGE-L 20.3 zero-shot and EgoSchema 56.8 % (subset) in the paper, with ViT-L at 256 frames
and a language model joined to it.
The tiny variant takes 35 s on two cores: the right scene among the first 5 of 32 for 28 % of texts (chance 16 %).
"""

from typing import Any

import ml_collections

from configs import parts
from configs.eff_shortvivit import MASKED
from configs.imagevit import SIZES, image_stage, model, tiny_image_stage
from configs.shortvivit import benchmarks, short_stage, tiny_short_stage, videos

FRAMES = {"vit_b": 128, "vit_l": 256}
TRAINED_LAYERS = 4


def long_stage(size: str, frames: int, **changes: Any) -> parts.Section:
    """Minutes of video; all but the last four layers and the projections are frozen."""
    layers = parts.VIT["L" if size == "vit_l" else "B"]["layers"]
    stage = short_stage(size)
    frozen = {"frozen_layers": layers - TRAINED_LAYERS}
    return {
        **stage,
        "name": "long",
        "duration": "50000 steps",
        "model": model(size, tubelet=(2, 16, 16), image_patch=(16, 16), transformer=frozen),
        "dials": MASKED,
        "data": videos(frames, "summaries"),
        "clip": {**stage["clip"], "frames": frames},
        "optimizer": {**stage["optimizer"], "freeze": ("^text_encoder/",)},
        "evals": tuple(
            evaluation
            for evaluation in benchmarks(frames)
            if evaluation["prefix"] in ("youcook2", "activitynet_captions")
        ),
        **changes,
    }


def tiny_long_stage(stage: parts.Section, frames: int = 32) -> parts.Section:
    """The corpus's long videos with their summaries, and its scenes, for there are few long videos."""
    sources = tuple(
        {"name": name, "data": parts.corpus(name), "clip": {"frames": frames, "times": {"name": "segments"}}}
        for name in ("summaries", "pairs")
    )
    data = {"mixing": "items", "sources": sources}
    evals = [parts.tiny_eval("retrieval", "pairs", clip={"times": {"name": "middle"}})]
    return parts.tiny(stage, data=data, evals=evals, frames=frames, steps=30, batch_size=8)


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """Three stages: image, short, long. Variants: vit_b (default), vit_l, tiny."""
    chosen = parts.variant(words, SIZES)
    size = parts.one_of(chosen, SIZES)
    stages = [image_stage(size), short_stage(size, dials=MASKED), long_stage(size, FRAMES[size])]
    if "tiny" in chosen:
        image, short, long = stages
        stages = [tiny_image_stage(image), tiny_short_stage(short, steps=30), tiny_long_stage(long)]
    return parts.recipe("longvivit", stages)
