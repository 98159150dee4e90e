r"""Captioners that answer: open questions in words, and choices by likelihood.

    python -m launch.train --config=configs/qa_finetune.py:msrvtt_qa --workdir=runs/qa_msrvtt \
        '--config.stages[0].init_from=("runs/caption_short",)'
    python -m launch.train --config=configs/qa_finetune.py:activitynet_qa --workdir=runs/qa_activitynet
    python -m launch.train --config=configs/qa_finetune.py:perception_test --workdir=runs/qa_perception
    python -m launch.train --config=configs/qa_finetune.py:tiny --workdir=runs/qa_finetune_tiny
    python -m launch.caption --run=runs/qa_msrvtt --video=my_video.mp4 --prompt="question: what is he doing answer:"

The caption stage of configs/caption_short.py, whose texts are answers after the prompt "question: ... answer:"; only
the answer is learned. Open questions count where the greedy answer is the one that people gave; of Perception Test's
three choices, and EgoSchema's five, the likeliest for each token is taken.
Chosen here: as the paper's fine-tuning to captions (its Table 4); it fine-tunes for no questions, and answers them with
its captioners as they are (EgoSchema 56.8 %, Perception Test in its appendix).
Data: data/NAME with its annotations and store (docs/datasets.md).
Pod: msrvtt_qa on v5e:4x8 (docs/scale.md).
Cost: 10 thousand steps, an eighth of those of configs/caption_short.py.
Result: none in the paper for fine-tuning; SViTT's classifier has 42.7 % on MSRVTT-QA, 42.3 % on ActivityNet-QA.
The tiny variant trains encoder, language model and captioner first, in a few minutes on two cores: too short to learn.
"""

from typing import Any

import ml_collections

from configs import parts
from configs.caption_finetune import stage as finetuning
from configs.caption_short import LANGUAGE, MASKED, caption_stage, tiny_caption
from configs.imagevit import SIZES
from configs.shortvivit import short_stage, tiny_short_stage

PROMPT = "question: {question} answer:"
# Split to train on, split to test on, and whether there are answers to choose from.
SETS = {
    "msrvtt_qa": ("train", "test", False),
    "activitynet_qa": ("train", "test", False),
    "perception_test": ("train", "valid", True),
}


def stage(name: str, size: str, language: str) -> parts.Section:
    """Questions of one set."""
    train, test, choices = SETS[name]
    found = finetuning("msrvtt", size, language, summaries=False)
    data: dict[str, Any] = {"name": name, "root": f"data/{name}", "store": f"data/{name}/store"}
    times = {"times": {"name": "segments"}, "prompt": PROMPT}
    validation = {
        "name": "likelihood_choice" if choices else "generated_answers",
        "prefix": name,
        "every": "25 percent",
        "data": {**data, "split": test},
        "clip": {"times": {"name": "middle"}, "prompt": ""},
        "dials": MASKED,
        "options": {"prompt": PROMPT},
        "batch_size": 32,
    }
    return {
        **found,
        "name": name,
        "data": {**data, "split": train},
        "clip": {**found["clip"], **times},
        "checkpoint": {**found["checkpoint"], "best": f"{name}/accuracy"},
        "evals": (validation,),
    }


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage. Variants: the sets (msrvtt_qa first); vit_b, vit_l; language models; tiny, of four stages."""
    chosen = parts.variant(words, (*SETS, *SIZES, *LANGUAGE))
    name, size = parts.one_of(chosen, tuple(SETS)), parts.one_of(chosen, SIZES)
    language = parts.one_of(chosen, tuple(LANGUAGE))
    full = stage(name, size, language)
    if "tiny" not in chosen:
        return parts.recipe(f"qa_{name}", [full])
    prompt = "{question}"
    look = {"times": {"name": "middle"}, "crop": {"name": "center"}, "prompt": ""}
    evals = [
        parts.tiny_eval("generated_answers", "open_questions", "open", clip=look, options={"prompt": prompt}),
        parts.tiny_eval("likelihood_choice", "questions", "choice", clip=look, options={"prompt": prompt}),
    ]
    asked = {**full, "clip": {**full["clip"], "prompt": prompt}}
    before = tiny_short_stage(short_stage(size), steps=20, evals=())
    pretrained = tiny_caption(caption_stage(size, language), "short", steps=30, evals=())
    tuned = tiny_caption(asked, "short", data=parts.corpus("questions"), steps=30, evals=evals)[1]
    return parts.recipe("qa_finetune", [before, *pretrained, {**tuned, "init_from": ("before",)}])
