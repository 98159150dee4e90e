"""The demo's second half: from its video encoder to sentences and answers about held-out videos, on two CPU cores.

    make demo-caption                      # runs `make demo` first, if that was not done
    python -m launch.train --config=configs/demo_caption.py --workdir=runs/demo_caption      # the training alone

Stages: language, a small language model that learns the corpus's sentences without a video; then caption: the encoder
of runs/demo is joined with this language model, which stays frozen, by gated cross-attention before each of its layers.
These learn, and the encoder goes on learning, from captions and from questions with their answers: an encoder that has
only learned to find whole sentences knows colours, half of the verbs, and hardly a shape. What the papers' recipes do,
a frozen encoder behind a resampler, is configs/caption_short.py.
Data: the embedded corpus of configs/demo.py, its captions of scenes and its questions about them.
Cost: 150 and 900 steps in about 6 minutes on two CPU cores.
Result: val/order 0.95 (blind 0.42), val/exact 0.02, val/cider 3.9 (blind 1.2), choice/accuracy 0.51 (chance 0.23);
docs/captioning.md says why so few captions are right in every word.
"""

from typing import Any

import ml_collections

from configs import demo

ENCODER = "runs/demo"
LAYERS, WIDTH = 2, 96
TEXT_LENGTH = 24


def corpus(annotations: str, split: str = "train") -> dict[str, Any]:
    """Clips of the demo's corpus with these annotations."""
    stage = demo.get_config().stages[0]
    return {**stage.data.to_dict(), "annotations": annotations, "split": split}


def language() -> dict[str, Any]:
    """A language model of the corpus's 91 words."""
    return {
        "layers": LAYERS,
        "width": WIDTH,
        "heads": 4,
        "mlp": 2 * WIDTH,
        "vocab": 96,
        "max_length": 32,
        "positions": "rotary",
        "norm": "rms",
        "activation": "silu",
        "gated": True,
        "tied": True,
        "dtype": "float32",
    }


def sources(clip: dict[str, Any]) -> dict[str, Any]:
    """Captions, and answers after their questions, in the same batches."""
    return {
        "mixing": "items",
        "sources": (
            {"name": "captions", "data": corpus("pairs"), "clip": {**clip, "prompt": ""}, "weight": 0.7},
            {"name": "questions", "data": corpus("questions"), "clip": {**clip, "prompt": "{question}"}, "weight": 0.3},
        ),
    }


def evaluation(name: str, prefix: str, annotations: str, **others: Any) -> ml_collections.ConfigDict:
    """An evaluator on whole, centred clips of held-out videos, at the end."""
    return ml_collections.ConfigDict(
        {
            "name": name,
            "prefix": prefix,
            "every": "100 percent",
            "data": corpus(annotations, "val"),
            "clip": {"times": {"name": "middle"}, "crop": {"name": "center"}},
            "batch_size": 60,
            **others,
        }
    )


def optimizer(learning_rate: float) -> dict[str, Any]:
    """AdamW, with a short warm-up."""
    return {
        "learning_rate": learning_rate,
        "warmup": "10 percent",
        "schedule": "cosine",
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "b2": 0.98,
    }


def language_stage() -> dict[str, Any]:
    """Sentences without videos."""
    return {
        "name": "language",
        "duration": "150 steps",
        "batch_size": 128,
        "model": {"name": "language", "language": language()},
        "data": sources({}),
        "clip": {"frames": 0, "text_length": TEXT_LENGTH},
        "tokenizer": f"{demo.ROOT}/tokenizer.json",
        "objective": {"name": "captioning"},
        "optimizer": optimizer(2e-3),
        "guard": {"skip": 0, "spike": 3.0},
        "checkpoint": {"every": "100 percent", "keep": 1},
    }


def caption_stage() -> dict[str, Any]:
    """Videos into sentences; the encoder and the language model stay as they are."""
    before = demo.get_config().stages[0]
    clip = {
        "frames": 8,
        "size": 64,
        "times": {"name": "segments"},
        "crop": {"name": "random_resized", "scale": (0.7, 1.0), "ratio": (0.9, 1.1)},
        "text_length": TEXT_LENGTH,
    }
    decoding = {"how": "greedy", "max_new": 20}
    return {
        "name": "caption",
        "duration": "900 steps",
        "batch_size": 64,
        "model": {
            "name": "captioner",
            "video": before.model.video.to_dict(),
            "language": language(),
            "resampler": None,
            "train_video": True,
            "train_language": False,
            "cross": {"every": 1},
            "pool_time": False,
        },
        "data": sources({}),
        "clip": clip,
        "tokenizer": f"{demo.ROOT}/tokenizer.json",
        "objective": {"name": "captioning"},
        "optimizer": {**optimizer(2e-3), "learning_rate_scales": (("^video_encoder/", 0.5),)},
        "init_from": ("before", ENCODER),
        "init_allow": ("^cross/", "_projection/", "^text_encoder/", "^log_scale$"),
        "guard": {"skip": 0, "spike": 3.0},
        "checkpoint": {"every": "100 percent", "keep": 1},
        "evals": (
            evaluation(
                "captioning", "val", "pairs", options={"decoding": decoding, "parse": "synthetic", "blind": True}
            ),
            evaluation("likelihood_choice", "choice", "questions", options={"prompt": "{question}"}),
        ),
    }


def get_config() -> ml_collections.ConfigDict:
    """Two stages: language, caption."""
    return ml_collections.ConfigDict(
        {
            "name": "demo_caption",
            "seed": 0,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "context": 1, "slices": 0},
            "runtime": {"workers": 1, "log_every": 25, "compile_cache": "", "wandb": ""},
            "stages": tuple(ml_collections.ConfigDict(stage) for stage in (language_stage(), caption_stage())),
        }
    ).lock()
