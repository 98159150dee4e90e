"""LongViViT, step 1: ShortViViT, joint space-time attention over 16 frames, from an image encoder.

    python -m launch.train --config=configs/shortvivit.py --workdir=runs/shortvivit             # images, then videos
    python -m launch.train --config=configs/shortvivit.py:vit_l --workdir=runs/shortvivit_l
    python -m launch.train --config=configs/shortvivit.py:tiny --workdir=runs/shortvivit_tiny

Stages: image (configs/imagevit.py; an encoder that exists goes into the second stage's `init_from`), then short: 16
frames at one a second, 256 pixels, tubelets of 2 x 16 x 16. Kernels in time start as the image's, repeated and divided;
positions repeat over time. Images stay in the mixture, with a stem of their own and a smaller weight in the loss.
From the paper (Table 4): 800 thousand steps of 512, learning rate 5e-5 after 1,000 steps of warm-up, cosine, AdamW with
decay 0.01, gradients clipped at 2; central crops only. The weight of images is not printed: 0.5 here.
Data: VideoCC and HowTo100M stand for the paper's mixture, whose VTP and captions by PALI are not public.
Pod: vit_l short on v5e:8x16 (docs/scale.md).
Cost: the paper trained ViT-L on 64 TPUv3 chips for a week. A clip of ViT-B is 1.1 TFLOP forward and backward.
Result: zero-shot R@1 in the paper, ViT-L, text to video / video to text: MSR-VTT 31.9 / 38.9, VATEX 37.8 / 42.8,
YouCook2 20.4 / 20.5, ActivityNet 21.3 / 18.9.
The tiny variant takes 25 s on two cores: the right scene among the first 5 of 32 for 55 % of texts (chance 16 %).
"""

from typing import Any

import ml_collections

from configs import parts
from configs.imagevit import SIZES, image_stage, model, tiny_image_stage

# Held-out videos that the paper tests on without training on them.
BENCHMARKS = {"msrvtt": "test1k", "vatex": "test", "youcook2": "val", "activitynet_captions": "val1"}


def benchmarks(frames: int) -> tuple[parts.Section, ...]:
    """Zero-shot retrieval, at the end of a stage."""
    return tuple(
        {
            "name": "retrieval",
            "prefix": name,
            "every": "25 percent",
            "data": {"name": name, "split": split, "root": f"data/{name}", "store": f"data/{name}/store"},
            "clip": {"frames": frames, "times": {"name": "fps", "rate": 1.0, "past": "spread"}},
            "batch_size": 64,
        }
        for name, split in BENCHMARKS.items()
    )


def videos(frames: int, *sets: str) -> parts.Section:
    """A mixture of these sets of videos at one frame a second, and of images in batches of their own."""
    clip: dict[str, Any] = {"frames": frames, "times": {"name": "fps", "rate": 1.0, "past": "spread"}}
    sections = {
        "videocc": {"name": "videocc", "split": "train"},
        "howto100m": {"name": "howto100m", "split": "superclean"},
        "summaries": {"name": "howto100m", "split": "summaries"},
    }
    folders = {"summaries": "howto100m"}
    sources = [
        {
            "name": name,
            "data": {
                **sections[name],
                "root": f"data/{folders.get(name, name)}",
                "store": f"data/{folders.get(name, name)}/store",
                "bad_clips": "drop",
            },
            "clip": clip,
        }
        for name in sets
    ]
    images = {"name": "image_text", "split": "train", "root": "data/images", "store": "data/images/store"}
    still = {"name": "images", "data": images, "clip": {"frames": 1, "times": {"name": "middle"}}, "loss_weight": 0.5}
    return {"mixing": "batches", "sources": (*sources, still)}


def short_stage(size: str, **changes: Any) -> parts.Section:
    """16 frames, beside images; `changes` replace keys of the stage."""
    stage = image_stage(size)
    return {
        **stage,
        "name": "short",
        "duration": "800000 steps",
        "batch_size": 512,
        "model": model(size, tubelet=(2, 16, 16), image_patch=(16, 16)),
        "data": videos(16, "videocc", "howto100m"),
        "clip": {**stage["clip"], "frames": 16},
        "evals": benchmarks(16),
        **changes,
    }


def tiny_mixture(frames: int, annotations: str = "pairs") -> parts.Section:
    """Scenes of the corpus, and stills of its events."""
    times = {"name": "segments"}
    return {
        "mixing": "batches",
        "sources": (
            {"name": "scenes", "data": parts.corpus(annotations), "clip": {"frames": frames, "times": times}},
            {
                "name": "images",
                "data": parts.corpus("narrations"),
                "clip": {"frames": 1, "times": {"name": "middle"}},
                "loss_weight": 0.5,
            },
        ),
    }


def tiny_short_stage(stage: parts.Section, **changes: Any) -> parts.Section:
    """Eight frames of the corpus's scenes, beside stills."""
    evals = [parts.tiny_eval("retrieval", "pairs"), parts.tiny_eval("multiple_choice", "pairs", "order")]
    return parts.tiny(stage, data=tiny_mixture(8), frames=8, **{"evals": evals, **changes})


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """Two stages: image, short. Variants: vit_b (default), vit_l, tiny."""
    chosen = parts.variant(words, SIZES)
    size = parts.one_of(chosen, SIZES)
    stages = [image_stage(size), short_stage(size)]
    if "tiny" in chosen:
        stages = [tiny_image_stage(stages[0]), tiny_short_stage(stages[1])]
    return parts.recipe("shortvivit", stages, mesh=parts.mesh(fsdp=4 if chosen == {"vit_l"} else 1))
