"""How much memory it takes to begin with a published model, beside the parameters that are kept.

    python -m benchmarks.loading                       # a Llama of 1 GB, two minutes on two cores
    python -m benchmarks.loading --size=tiny           # in seconds

Random weights are written as a Hugging Face folder has them, in several files. Then a process each measures its peak:
"stage" begins a training as a stage with this `init_from` does, up to the first step (with frozen parameters, as
captioners have them: no moments); "whole" reads all parameters into arrays of the host, then puts them on the device
beside a fresh state, which is what one would write at first. Figures are the peak of resident memory over what the
process had before, and its ratio to the bytes of the parameters in float32.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks._common import machine
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.models.language import Model
from vidlang.pretrained import llama
from vidlang.pretrained._safetensors import write_file
from vidlang.train.initial import awaited, take_params
from vidlang.train.optimizer import make_optimizer
from vidlang.train.origins import Weights
from vidlang.train.step import TrainState, abstract_params, create_state

SIZES = {
    "1gb": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 14, "vocab_size": 16_000},
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4_000},
}
REST = {"model_type": "llama", "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 256}
REST |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu"}
FILES = 4

_SIZE = flags.DEFINE_enum("size", "1gb", list(SIZES), "How large the model is.")


def write_folder(folder: Path, config: dict[str, Any]) -> int:
    """Random weights in the published form; how many parameters they are."""
    rng, count = np.random.default_rng(0), 0
    names: dict[str, str] = {}
    d, f = config["hidden_size"], config["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for layer in range(config["num_hidden_layers"]):
        here = f"model.layers.{layer}"
        shapes |= {f"{here}.self_attn.{part}_proj.weight": (d, d) for part in "qkvo"}
        shapes |= {f"{here}.mlp.{part}_proj.weight": (f, d) for part in ("gate", "up")}
        shapes |= {f"{here}.mlp.down_proj.weight": (d, f)}
        shapes |= {f"{here}.{norm}_layernorm.weight": (d,) for norm in ("input", "post_attention")}
    (folder / "config.json").write_text(json.dumps(config))
    for number in range(FILES):
        part = dict(list(shapes.items())[number::FILES])
        file = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        write_file(folder / file, {name: rng.random(shape, np.float32) - 0.5 for name, shape in part.items()})
        names |= dict.fromkeys(part, file)
        count += sum(int(np.prod(shape)) for shape in part.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return count


def measure(way: str, path: str, to: Any) -> None:
    """In a process of its own: sends (bytes of the peak beyond the start, seconds)."""
    weights, model = Weights("llama", path), Model(language={**llama.section(path), "dtype": "float32"})
    stage: Any = SimpleNamespace(model={"name": "language", "language": model.language}, init_allow=())
    fields = {"text_BL": jax.ShapeDtypeStruct((1, 8), np.int32)}
    mesh = make_mesh({"data": -1})
    with use_mesh(mesh):
        params = abstract_params(model, fields)
        frozen = ("^language/words", "^language/layers")
        optimizer = make_optimizer(params, total_steps=1, batch_size=1, learning_rate=1e-3, freeze=frozen)
        jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())
        start, began = reset_peak(), time.monotonic()
        blank = awaited([weights], stage, params) if way == "stage" else ()
        state = create_state(model, optimizer, fields, mesh, 0, blank=blank)
        if way == "stage":
            state, _ = take_params(state, [weights], (), stage, fields, mesh)
        else:
            loaded = llama.load(path)
            state = TrainState(state.step, jax.device_put({"language": loaded}), state.opt_state)
        jax.block_until_ready(state)
        to.send((peak() - start, time.monotonic() - began))


def reset_peak() -> int:
    """Forgets the peak so far; the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most bytes that have been resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(_: list[str]) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        size = 4 * write_folder(Path(folder), SIZES[_SIZE.value] | REST)
        print(f"parameters in float32: {size / 1e9:.2f} GB, in {FILES} files")
        for way in ("stage", "whole"):
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(way, folder, there))
            process.start()
            there.close()
            extra, seconds = here.recv()
            process.join()
            print(f"  {way:6} peak {extra / 1e9:5.2f} GB, {extra / size:4.2f} x the parameters, {seconds:5.1f} s")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    app.run(main)
