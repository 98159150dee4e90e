"""A run's folder as a training leaves it, but for the training: a checkpoint of parameters none of which is 0 or 1."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.data.tokenizer import train_wordlevel
from vidlang.train import build, sources
from vidlang.train.checkpoint import Checkpoints, opened
from vidlang.train.recipe import read_recipe
from vidlang.train.run_files import write_json
from vidlang.train.saved import make_note
from vidlang.train.step import TrainState, boxed_params

TRANSFORMER = {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
TEXT = {"vocab": 32, "max_length": 8, "transformer": {**TRANSFORMER, "layers": 1}, "pool": "mean"}
DUAL = {
    "name": "dual_encoder",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8), "pool": "cls"},
    "text": TEXT,
    "embed": 8,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}
CLASSIFIER = {
    "name": "classifier",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
    "heads": {"verb": 3, "noun": 5},
}
WORDS = ["a red square slides left", "the blue circle spins"]


def tiny_run(folder, model=DUAL, dials=None, clip=None):
    """(the folder, the run's parameters); one checkpoint, of step 7."""
    tokenizer = folder / "tokenizer.json"
    folder.mkdir(parents=True, exist_ok=True)
    train_wordlevel(WORDS, tokenizer)
    dual = "text" in model
    heads = dict.fromkeys(model.get("heads", ()), 1.0)
    stage = {
        "name": "tiny",
        "duration": "7 steps",
        "batch_size": 8,
        "model": model,
        "dials": dials or {},
        "data": {"name": "synthetic", "root": str(folder / "corpus"), "split": "train"},
        "clip": {
            "frames": 4,
            "size": 16,
            "times": {"name": "segments"},
            "crop": {"name": "center"},
            "text_length": 8 if dual else 0,
            **(clip or {}),
        },
        "tokenizer": {"path": str(tokenizer), "clean": "narration"} if dual else "",
        "objective": {"name": "contrastive"} if dual else {"name": "classification", "heads": heads},
        "optimizer": {"learning_rate": 0.01},
    }
    config = {"name": "tiny", "seed": 0, "mesh": {"data": -1}, "stages": (stage,)}
    write_json(folder / "config.json", config)
    recipe = read_recipe(config)
    (fields,) = sources.batch_fields(recipe.stages[0], None).values()
    shapes = nn.unbox(jax.eval_shape(lambda: boxed_params(build.model(recipe.stages[0]), fields, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    on_one = jax.device_put(params, jax.devices()[0])  # what lies on several devices takes seconds to save
    plan, note = recipe.stages[0].checkpoint, make_note(config, 0, fields, {})
    with opened(Checkpoints(folder / recipe.folder(0), plan, note)) as checkpoints:
        checkpoints.save(7, TrainState(jnp.int32(7), on_one, {}))
    return folder, params
