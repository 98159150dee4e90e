"""A small recipe with a video encoder, in shapes: nothing here reads data."""

import pytest

from vidlang.train.recipe import read_recipe

TRANSFORMER = {"layers": 4, "width": 64, "heads": 4, "mlp": 256, "dtype": "float32"}


@pytest.fixture
def recipe():
    """recipe(frames=..., dials=..., video={...}, transformer={...}) -> one stage, of eight clips of 32 pixels."""

    def make(*, frames=8, video=None, transformer=None, **changes):
        model = {
            "name": "dual_encoder",
            "video": {"transformer": TRANSFORMER | (transformer or {}), "tubelet": (2, 8, 8), "pool": "cls"}
            | (video or {}),
            "text": {"vocab": 64, "max_length": 8, "transformer": TRANSFORMER | {"layers": 1}, "pool": "mean"},
            "embed": 8,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        }
        stage = {
            "name": "short",
            "duration": "4 steps",
            "batch_size": 8,
            "model": model,
            "data": {"name": "synthetic", "split": "train"},
            "clip": {
                "frames": frames,
                "size": 32,
                "times": {"name": "segments"},
                "crop": {"name": "center"},
                "text_length": 8,
            },
            "tokenizer": "tokenizer.json",
            "objective": {"name": "contrastive", "chunk": 8},
            "optimizer": {"learning_rate": 0.01},
        }
        return read_recipe({"name": "tiny", "seed": 0, "stages": (stage | changes,)})

    return make
