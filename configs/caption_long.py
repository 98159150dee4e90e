r"""LongViViT, video to text over minutes: summaries of 256 frames by a frozen encoder and a frozen language model.

    python -m launch.train --config=configs/caption_long.py --workdir=runs/caption_long \
        '--config.stages[0].init_from=("runs/longvivit_l", "gpt2:weights/gpt2-medium:language")'
    python -m launch.train --config=configs/caption_long.py:vit_b --workdir=runs/caption_long_b \
        '--config.stages[0].init_from=("runs/longvivit", "gpt2:weights/gpt2-medium:language")'
    python -m launch.train --config=configs/caption_long.py:tiny --workdir=runs/caption_long_tiny
    python -m launch.plan --config=configs/caption_long.py --target=tpu:v5e:2x2 --batch_size=4 --settings="own|trained"
    python -m launch.caption --run=runs/caption_long --video=my_film.mp4 --max_new=200

The caption stage of configs/caption_short.py on videos of minutes with summaries, at one frame a second: 256 frames
with ViT-L, 128 with ViT-B. Tokens are averaged over time before the resampler, so that the language model looks at as
many as of a short clip; without that the paper found training unstable beyond 32 frames.
From the paper (Table 4): as for short videos. How long the summaries are is not said: 256 tokens here.
Data: HowTo100M's long videos with summaries of your own; those of the paper are not public.
Pod: vit_l caption on v5e:8x16 (docs/scale.md).
Cost: the paper trained ViT-L with 400M for 2.5 days on 128 TPUv3 chips. A clip a chip is 9.6 GB of a TPU v5e's 16, as
compiled (docs/captioning.md); with the encoder trained too, 18.1.
Result: ROUGE-L of summaries in the paper: YouCook2 20.3 zero-shot, ActivityNet 15.2; EgoSchema 56.8 % (subset), 33.3 %
(all), as multiple choice by likelihood.
The tiny variant takes 256 frames of the corpus's long videos and their summaries, to show that they train and generate;
ten steps are too short to learn any.
"""

from typing import Any

import ml_collections

from configs import parts
from configs.caption_short import LANGUAGE, MASKED, caption_stage, captioning, model, tiny_caption
from configs.longvivit import FRAMES
from configs.shortvivit import short_stage, tiny_short_stage, videos

SIZES = ("vit_l", "vit_b")
TEXT_LENGTH = 256
SUMMARY = {"how": "beam", "beams": 4, "max_new": 200}


def long_stage(size: str, language: str, **changes: Any) -> parts.Section:
    """Summaries of whole videos."""
    frames = FRAMES[size]
    times = {"frames": frames, "times": {"name": "fps", "rate": 1.0, "past": "spread"}}
    egoschema = {
        "name": "likelihood_choice",
        "prefix": "egoschema",
        "every": "25 percent",
        "data": {"name": "egoschema", "split": "subset", "root": "data/egoschema", "store": "data/egoschema/store"},
        "clip": {**times, "prompt": ""},
        "dials": MASKED,
        "options": {"prompt": "question: {question} answer:"},
        "batch_size": 8,
    }
    evals = (
        captioning("youcook2", "val", times, SUMMARY, clips="videos"),
        captioning("activitynet_captions", "val1", times, SUMMARY, clips="videos"),
        egoschema,
    )
    return caption_stage(
        size,
        language,
        frames,
        data=videos(frames, "summaries"),
        model=model(size, language, tubelet=(2, 16, 16), image_patch=(16, 16)),
        evals=tuple({**evaluation, "batch_size": 8} for evaluation in evals),
        **changes,
    )


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage. Variants: vit_l (default), vit_b; gpt2_medium (default), smollm_360m, llama_1b; tiny, of three."""
    chosen = parts.variant(words, (*SIZES, *LANGUAGE))
    size, language = parts.one_of(chosen, SIZES), parts.one_of(chosen, tuple(LANGUAGE))
    stage = long_stage(size, language)
    stage = {**stage, "clip": {**stage["clip"], "text_length": TEXT_LENGTH}}
    if "tiny" not in chosen:
        return parts.recipe("caption_long", [stage])
    before = tiny_short_stage(short_stage(size), steps=20, evals=())
    look = {"times": {"name": "middle"}, "crop": {"name": "center"}, "prompt": ""}
    summaries = parts.corpus("summaries")
    decoding = {"max_new": 200}
    evals = [
        parts.tiny_eval(
            "captioning", "summaries", clip=look, options={"decoding": decoding, "parse": "synthetic"}, batch_size=8
        ),
    ]
    changes: dict[str, Any] = {"data": summaries, "evals": evals, "frames": 256, "steps": 10, "batch_size": 8}
    return parts.recipe("caption_long", [before, *tiny_caption(stage, "short", text_length=TEXT_LENGTH, **changes)])
