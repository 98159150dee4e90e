"""What is counted instead of trained: operations of steps, and memory of a step compiled at full size."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from vidlang.core.config import to_dict
from vidlang.cost.program import build_program, step_flops
from vidlang.cost.targets import Refused, StepMemory, Target, measure
from vidlang.train.recipe import Recipe, read_recipe

VIT_B = {"layers": 12, "width": 768, "heads": 12, "mlp": 3072, "dtype": "bfloat16"}
BERT_MEDIUM = {"layers": 8, "width": 512, "heads": 8, "mlp": 2048, "dtype": "bfloat16"}


def step_operations(stage: Mapping[str, Any]) -> int:
    """Of a whole train step of a stage, for its batch."""
    return _count(_key(stage))


def full_size_memory(frames: int, **changes: Any) -> float:
    """Bytes that a step needs for one clip of so many frames of 256 pixels: LongViViT's ViT-B beside BERT-medium.

    `changes` are the stage's dials and the keys of its video transformer, by these names. Compiled for one CPU, in a
    process of its own; nothing is recomputed, no weight of attention left out of memory.
    """
    return _memory(frames, json.dumps(changes, sort_keys=True))


def _key(stage: Mapping[str, Any]) -> str:
    """What of a stage decides its operations, as text: the same for any seed, duration and place of the corpus."""
    kept = {name: value for name, value in to_dict(stage).items() if name not in ("evals", "duration", "data")}
    return json.dumps({**kept, "duration": "100 steps", "init_from": ""}, sort_keys=True)


@functools.cache
def _count(stage: str) -> int:
    recipe = _recipe({**_tuples(json.loads(stage)), "data": {"name": "synthetic", "split": "train", "root": ""}})
    return step_flops(build_program(recipe, 0))


@functools.cache
def _memory(frames: int, changes: str) -> float:
    given = json.loads(changes)
    video = {"transformer": {**VIT_B, **given.get("transformer", {})}, "tubelet": (2, 16, 16), "pool": "mean"}
    stage = {
        "name": "full_size",
        "duration": "100 steps",
        "batch_size": 1,
        "model": {
            "name": "dual_encoder",
            "video": video,
            "text": {"vocab": 30_528, "max_length": 32, "transformer": BERT_MEDIUM, "pool": "mean"},
            "embed": 256,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        },
        "dials": given.get("dials", {}),
        "data": {"name": "synthetic", "split": "train", "root": ""},
        "clip": {
            "frames": frames,
            "size": 256,
            "times": {"name": "segments"},
            "crop": {"name": "center"},
            "text_length": 32,
        },
        "tokenizer": "tokenizer.json",
        "objective": {"name": "contrastive"},
        "optimizer": {"learning_rate": 1e-4, "clip_norm": 1.0},
    }
    (answer,) = measure([(_recipe(stage), 0)], Target("cpu"))
    if isinstance(answer, Refused):
        raise ValueError(f"memory at {frames} frames could not be planned: {answer.reason}")
    assert isinstance(answer, StepMemory)
    return float(answer.total)


def _recipe(stage: Mapping[str, Any]) -> Recipe:
    return read_recipe({"name": "costs", "seed": 0, "mesh": {"data": 1}, "stages": (stage,)})


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples of a config."""
    if isinstance(value, Mapping):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
