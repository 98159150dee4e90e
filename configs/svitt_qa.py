r"""SViTT fine-tuned to answer questions: MSRVTT-QA, ActivityNet-QA, AGQA.

    python -m launch.train --config=configs/svitt_qa.py:msrvtt_qa --workdir=runs/msrvtt_qa \
        '--config.stages[0].init_from=runs/svitt'
    python -m launch.train --config=configs/svitt_qa.py:activitynet_qa --workdir=runs/activitynet_qa
    python -m launch.train --config=configs/svitt_qa.py:agqa --workdir=runs/agqa
    python -m launch.train --config=configs/svitt_qa.py:tiny --workdir=runs/qa_tiny

It starts from a stage of configs/svitt.py: towers and fusion encoder are taken, its heads are left, and a new one
chooses among the answers of training. (SViTT's code ranks them by a decoder of BERT's kind; the benchmarks count
either.) In the fusion encoder half of the video tokens stay, as in its code's settings for questions.
From SViTT's code: AdamW at 1e-5 with decay 0.02, cosine. Chosen here: 10 epochs of 128 questions.
`ANSWERS` below is how long each list of answers is; a list of another length is an error that says so.
Data: data/NAME with its annotations, its list of answers and a store (docs/datasets.md).
Pod: msrvtt_qa on v5e:4x8 (docs/scale.md).
Cost: that of SViTT's short stage, without contrast; MSRVTT-QA has 158,581 questions to train on.
Result: accuracy with the dense model in the paper: MSRVTT-QA 42.7, ActivityNet-QA 42.3, AGQA 50.2; hybrid is better, by
0.3 on the first and by more on the others.
The tiny variant takes 95 s on two cores: 15 % of answers right, of 16.
"""

from typing import Any

import ml_collections

from configs import parts
from configs.svitt import dials, model, tiny_stage
from configs.svitt import stage as pretraining
from vidlang.datasets.synthetic import answer_list

# How many answers there are to choose from, in the lists that Singularity's annotations come with.
ANSWERS = {"msrvtt_qa": 1_500, "activitynet_qa": 1_654, "agqa": 171}
SPLITS = {"msrvtt_qa": "test", "activitynet_qa": "test", "agqa": "test"}
FRAMES = 4
LEFT = ("_projection/", "^log_scale$", "^match_head/", "^word_head/", "^video_encoder/(pooled_)?norm/")


def stage(name: str) -> parts.Section:
    """Questions of one set."""
    before = pretraining("hybrid", FRAMES)
    data: dict[str, Any] = {"name": name, "root": f"data/{name}", "store": f"data/{name}/store", "listed": True}
    validation = {
        "name": "question_answering",
        "prefix": name,
        "every": "20 percent",
        "data": {**data, "split": SPLITS[name]},
        "clip": {"times": {"name": "middle"}, "crop": {"name": "full"}, "fields": ()},
        "options": {"answers": {"name": name, "root": data["root"]}},
        "batch_size": 32,
    }
    return {
        **before,
        "name": name,
        "duration": "10 epochs",
        "batch_size": 128,
        "model": qa_model(ANSWERS[name]),
        "init_from": "",
        "init_allow": ("^answer_", *LEFT),
        "dials": {**dials("hybrid", FRAMES), "keep_text": {"1": 0.5}},
        "data": {**data, "split": "train"},
        "clip": {**before["clip"], "text": "question", "fields": ("answer",)},
        "objective": {"name": "classification", "heads": {"answer": 1.0}},
        "optimizer": {**before["optimizer"], "learning_rate": 1e-5, "final_learning_rate": 1e-7},
        "checkpoint": {"every": "10 percent", "keep": 2, "best": f"{name}/accuracy"},
        "evals": (validation,),
    }


def qa_model(answers: int) -> parts.Section:
    """SViTT's towers and fusion encoder with a choice among answers."""
    whole = model()
    return {
        "name": "question_answering",
        "video": whole["video"],
        "text": whole["text"],
        "fusion": whole["fusion"],
        "answers": answers,
    }


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage, two where it is tiny: there a pre-training comes first. Variants: the sets, tiny."""
    chosen = parts.variant(words, tuple(ANSWERS))
    name = parts.one_of(chosen, tuple(ANSWERS))
    full = stage(name)
    if "tiny" not in chosen:
        return parts.recipe(f"svitt_{name}", [full])
    answers = answer_list(verbs=6, shapes=4)
    full["model"] = qa_model(len(answers))
    clip = {"times": {"name": "middle"}, "crop": {"name": "full"}, "fields": ()}
    options = {"answers": tuple(answers)}
    evals = [parts.tiny_eval("question_answering", "open_questions", clip=clip, options=options)]
    small = parts.tiny(full, data=parts.corpus("open_questions"), evals=evals, frames=FRAMES, steps=80)
    before = tiny_stage(pretraining("hybrid", FRAMES), FRAMES, steps=30, evals=())
    return parts.recipe("svitt_qa", [before, small])
