"""What compiled train steps hold and do not: the batch's logits, parameters gathered again, talks with the host."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.metrics import read_history
from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.train import prepared, stages
from vidlang.train.program import stage_program
from vidlang.train.recipe import read_recipe

# No two sizes are alike, so that shapes tell what an array is.
BATCH, WIDTH, EMBED = 48, 32, 16
TRANSFORMER = {"layers": 3, "width": WIDTH, "heads": 4, "mlp": 64, "dtype": "float32", "remat": "full"}
MODEL = {
    "name": "dual_encoder",
    "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8)},
    "text": {"vocab": 72, "max_length": 8, "transformer": {**TRANSFORMER, "layers": 2}, "pool": "mean"},
    "embed": EMBED,
    "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
}
GATHER = re.compile(r'= \(?\w+\[([\d,]*)\].* all-gather(?:-start)?\(.*op_name="([^"]*)"')
HOST = re.compile(r"\b(infeed|outfeed|send|recv|send-done|recv-done)\(|custom_call_target=\"[^\"]*(?:callback|host)")


@pytest.fixture(scope="module")
def program(stage_config):
    """The text of a step of the model above under full fsdp and rematerialisation, compiled for eight devices."""
    changes = {"batch_size": BATCH, "model": MODEL, "dials": {}}
    recipe = read_recipe({"name": "tiny", "seed": 0, "stages": (stage_config(**changes),)})
    fields = {
        "video_BTHWC": jax.ShapeDtypeStruct((BATCH, 4, 16, 16, 3), np.uint8),
        "text_BL": jax.ShapeDtypeStruct((BATCH, 8), np.int32),
    }
    mesh = make_mesh({"fsdp": 8})
    with use_mesh(mesh):
        return stage_program(recipe, 0, fields, 4).compile(mesh).as_text()


def gathers(text):
    """(computation, shape, what it is for) of each all-gather."""
    found, inside = [], ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            inside = line.split(" (")[0]
        if match := GATHER.search(line):
            found.append((inside, tuple(int(size) for size in match[1].split(",") if size), match[2]))
    return found


def arrays_of_the_batch(text, batch):
    """Shapes that hold this size twice."""
    shapes = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w\[([\d,]+)\]", text)}
    return [shape for shape in shapes if shape.count(batch) > 1]


def test_no_device_holds_all_logits_and_only_embeddings_are_gathered(program):
    assert not arrays_of_the_batch(program, BATCH)
    of_the_batch = [shape for _, shape, name in gathers(program) if "shard_map" in name]
    # Both embeddings, each once, and of each row its number and whether it is valid.
    assert of_the_batch.count((BATCH, EMBED)) == 2
    assert max(np.prod(shape) for shape in of_the_batch) == BATCH * EMBED

    def plain(video_BE, text_BE):
        return jax.nn.logsumexp(video_BE @ text_BE.T, axis=1).mean()

    rows = jnp.ones((BATCH, EMBED))
    assert arrays_of_the_batch(jax.jit(plain).lower(rows, rows).compile().as_text(), BATCH)


def test_parameters_are_gathered_once_forward_and_once_backward(program):
    """Twice it must be: to keep what the forward pass gathered would be to hold every layer whole.

    But no more, though under remat the backward pass begins with another forward pass of the layer: the two share one
    gather. Outside of the layers' loops, where nothing is computed again, it is once.
    """
    known = {}
    for inside, shape, name in gathers(program):
        if "shard_map" in name or WIDTH not in shape:
            continue
        layer = re.search(r"(video|text)_encoder/stack/.*?(?:_attend|_mlp)/(\S+)/\w+$", name)
        key = (*layer.groups(), "bias" if len(shape) == 1 else "kernel") if layer else name.split("Model.encode/")[-1]
        known.setdefault(key, []).append(inside)
    layers = {key: where for key, where in known.items() if isinstance(key, tuple)}
    # Of two towers: six matrices each, and two biases of the width.
    assert len(layers) == 16, sorted(layers)
    for key, where in layers.items():
        assert len(set(where)) == len(where) <= 2, (key, where)
    outside = {key: where for key, where in known.items() if not isinstance(key, tuple)}
    assert outside and all(len(where) == 1 for where in outside.values()), outside


def test_a_step_says_nothing_to_the_host(program):
    assert not HOST.search(program)

    def talks(x):
        jax.debug.callback(lambda x: None, x)
        return x + 1

    assert HOST.search(jax.jit(talks).lower(jnp.ones(2)).compile().as_text())


# Two kinds of change that a step takes as data: graphs are drawn in every layer, and so are widths.
DRAWN = {
    "edges": {"local": 1, "random": 1, "block": 2, "redraw": "always"},
    "widths": {"name": "dec", "shares": (1.0, 0.5)},
    "mask": 0.5,
}


@pytest.mark.slow
def test_two_hundred_steps_of_changing_widths_and_graphs_compile_nothing(recipe, tmp_path, monkeypatch):
    """What the whole loop compiles, it has compiled when its third batch is taken, and saves with the first save."""
    compiled, at_step = [], []

    def count(event, duration, **_):
        compiled.extend([event] * event.endswith("backend_compile_duration"))

    class Counting(prepared.Feed):
        def take(self):
            at_step.append(len(compiled))
            return super().take()

    monkeypatch.setattr(prepared, "Feed", Counting)
    small = {"layers": 2, "width": 16, "heads": 4, "mlp": 32, "dtype": "float32"}
    text = {"vocab": 128, "max_length": 8, "transformer": {**small, "layers": 1}, "pool": "mean"}
    model = {**MODEL, "video": {"transformer": small, "tubelet": (1, 4, 4)}, "text": text}
    optimizer = {"learning_rate": 0.0, "weight_decay": 0.0}
    changes = {"model": model, "dials": DRAWN, "optimizer": optimizer, "evals": (), "duration": "200 steps"}
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        stages.train(recipe(**changes, checkpoint={"every": "80 steps", "keep": 1}), tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(at_step) == 200 and at_step[2] > 0
    assert at_step[2] == at_step[79], "a step, or what belongs to it, was compiled anew"
    assert at_step[80] == at_step[199], "a step or a save was compiled anew"
    losses = {record["loss"] for record in read_history(tmp_path / "0_short/metrics.jsonl") if "loss" in record}
    assert len(losses) > 150, "parameters stand still: only what is drawn can tell two steps of an epoch apart"
