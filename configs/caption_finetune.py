r"""LongViViT's captioners fine-tuned to one set: MSR-VTT, VATEX, YouCook2, ActivityNet Captions.

    python -m launch.train --config=configs/caption_finetune.py:msrvtt --workdir=runs/caption_msrvtt \
        '--config.stages[0].init_from=("runs/caption_short",)'
    python -m launch.train --config=configs/caption_finetune.py:vatex --workdir=runs/caption_vatex
    python -m launch.train --config=configs/caption_finetune.py:youcook2 --workdir=runs/caption_youcook2
    python -m launch.train --config=configs/caption_finetune.py:activitynet --workdir=runs/caption_activitynet
    python -m launch.train --config=configs/caption_finetune.py:youcook2,summaries --workdir=runs/caption_youcook2_l \
        '--config.stages[0].init_from=("runs/caption_long",)'
    python -m launch.train --config=configs/caption_finetune.py:tiny --workdir=runs/caption_finetune_tiny

The caption stage of configs/caption_short.py on one set's clips; `summaries` are whole videos with all their sentences,
at 256 frames, for YouCook2 and ActivityNet. Encoder and language model stay frozen.
From the paper (Table 4): 10 thousand steps of 64 to 128 (128 here), learning rates between 1e-6 and 5e-6 (5e-6 here)
after 1,000 steps of warm-up, decay 1e-4, gradients clipped at 1. Scores are those of the whole corpus.
Data: data/NAME with its annotations and store (docs/datasets.md).
Pod: msrvtt on v5e:4x8 (docs/scale.md).
Cost: 10 thousand steps, an eighth of those of configs/caption_short.py; the paper gives none of its own.
Result: CIDEr in the paper, ViT-L with 400M: MSR-VTT 63.1, ActivityNet 44.8; ROUGE-L of summaries: YouCook2 30.6,
ActivityNet 24.0.
The tiny variant trains encoder, language model and captioner first, in a few minutes on two cores: too short to learn.
"""

from typing import Any

import ml_collections

from configs import parts
from configs.caption_long import SUMMARY, TEXT_LENGTH
from configs.caption_short import DECODING, LANGUAGE, caption_stage, captioning, tiny_caption
from configs.imagevit import SIZES
from configs.longvivit import FRAMES
from configs.shortvivit import short_stage, tiny_short_stage

# Reader, split to train on, split to test on.
SETS = {
    "msrvtt": ("msrvtt", "train9k", "test1k"),
    "vatex": ("vatex", "train", "test"),
    "youcook2": ("youcook2", "train", "val"),
    "activitynet": ("activitynet_captions", "train", "val1"),
}
LONG = ("youcook2", "activitynet")


def stage(name: str, size: str, language: str, *, summaries: bool) -> parts.Section:
    """Captions, or summaries, of one set."""
    reader, train, test = SETS[name]
    if summaries and name not in LONG:
        raise ValueError(f"summaries are of whole videos, which {' and '.join(LONG)} have; found {name}")
    frames = FRAMES[size] if summaries else 16
    times = {"frames": frames, "times": {"name": "fps", "rate": 1.0, "past": "spread"}}
    data: dict[str, Any] = {"name": reader, "root": f"data/{reader}", "store": f"data/{reader}/store"}
    if reader in ("youcook2", "activitynet_captions"):
        data["clips"] = "videos" if summaries else "segments"
    others = {key: value for key, value in data.items() if key == "clips"}
    found = caption_stage(
        size,
        language,
        frames,
        name=name,
        duration="10000 steps",
        data={**data, "split": train},
        evals=(captioning(reader, test, times, SUMMARY if summaries else DECODING, **others),),
    )
    found["checkpoint"] = {"every": "1000 steps", "keep": 2, "best": f"{reader}/cider"}
    found["optimizer"] = {**found["optimizer"], "learning_rate": 5e-6, "warmup": "1000 steps"}
    found["clip"] = {**found["clip"], "text_length": TEXT_LENGTH if summaries else 64}
    return found


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage. Variants: the sets (msrvtt first), summaries; vit_b, vit_l; language models; tiny, of four stages."""
    chosen = parts.variant(words, (*SETS, *SIZES, *LANGUAGE, "summaries"))
    name, size = parts.one_of(chosen, tuple(SETS)), parts.one_of(chosen, SIZES)
    language = parts.one_of(chosen, tuple(LANGUAGE))
    full = stage(name, size, language, summaries="summaries" in chosen)
    if "tiny" not in chosen:
        return parts.recipe(f"caption_{name}", [full])
    before = tiny_short_stage(short_stage(size), steps=20, evals=())
    pretrained = tiny_caption(caption_stage(size, language), "short", steps=30, evals=())
    tuned = tiny_caption(full, "short", data=parts.corpus("narrations"), steps=20, learning_rate=3e-4)[1]
    return parts.recipe("caption_finetune", [before, *pretrained, {**tuned, "init_from": ("before",)}])
