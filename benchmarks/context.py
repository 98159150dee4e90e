"""Tokens over the mesh axis "context": memory of a device and what it sends, one device against several, in one run.

    python -m benchmarks.context                                     ViT-B, 64 frames x 224 px, some minutes
    python -m benchmarks.context --width=1024 --layers=24 --frames=256 --size=256       ViT-L on long video
    python -m benchmarks.context --json                              the same as one line of JSON

The gradient step of a video encoder with one clip, float32, every layer computed again for its backward pass, compiled
for pretended CPU devices and never run: memory is the compiler's count of bytes beyond inputs and outputs, what is sent
is counted from the program. "fused" brings all keys to every device and keeps all logits of its own queries; "ring"
lets keys go round; "edges" are (1, 5, 56), whose keys are brought to every device. Ratios are to the first line of each
kind. Compilers for GPUs and TPUs keep other temporaries: what falls with the axis there does so alike.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from typing import Any

# Before jax counts its devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags

from vidlang.core.sharding import batch_sharding, make_mesh, tree_shardings, use_mesh
from vidlang.cost import collectives
from vidlang.models.video import Model
from vidlang.ops.dials import OFF, Dials, streams

_FRAMES = flags.DEFINE_integer("frames", 64, "Frames of the clip.")
_SIZE = flags.DEFINE_integer("size", 224, "Height and width of a frame.")
_WIDTH = flags.DEFINE_integer("width", 768, "Width of the encoder; heads have 64 channels.")
_LAYERS = flags.DEFINE_integer("layers", 12, "Layers of the encoder.")
_CONTEXT = flags.DEFINE_multi_integer("context", [1, 2, 4, 8], "Devices that share the clip's tokens.")
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of a table.")

TUBELET = (2, 16, 16)
EDGES = Dials(edges={"local": 1, "random": 5, "block": 56})
# Name of a kind -> (how dense attention runs, dials). With one device there is no ring: that is chunked attention.
KINDS: dict[str, tuple[str, Dials]] = {"fused": ("fused", OFF), "ring": ("ring", OFF), "edges": ("auto", EDGES)}


def row(kind: str, context: int) -> dict[str, Any]:
    """What one kind of attention needs on so many devices."""
    implementation, dials = KINDS[kind]
    sizes = {"layers": _LAYERS.value, "width": _WIDTH.value, "heads": _WIDTH.value // 64, "mlp": 4 * _WIDTH.value}
    transformer = {**sizes, "dtype": "float32", "remat": "full", "attention": implementation}
    model = Model(transformer, tubelet=TUBELET, pool="cls")
    video = jax.ShapeDtypeStruct((1, _FRAMES.value, _SIZE.value, _SIZE.value, 3), jnp.uint8)
    boxed = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), video)

    def loss(params: Any, video_BTHWC: jax.Array) -> jax.Array:
        output: Any = model.apply(params, video_BTHWC, train=True, dials=dials, rngs=streams(jax.random.key(0)))
        return output.pooled_BD.sum()

    mesh = make_mesh({"context": context}, jax.devices()[:context])
    with use_mesh(mesh):
        shardings = tree_shardings(boxed, mesh)
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            nn.unbox(boxed),
            shardings,
        )
        given = jax.ShapeDtypeStruct(video.shape, video.dtype, sharding=batch_sharding(mesh))
        program = jax.jit(jax.grad(loss), out_shardings=shardings).lower(params, given).compile()
    found = {total.kind: total.sent for total in collectives.by_kind(collectives.read(str(program.as_text())))}
    memory = program.memory_analysis()
    assert memory is not None
    return {
        "kind": kind,
        "context": context,
        "temporary_bytes": memory.temp_size_in_bytes,
        "sent_bytes": found,
    }


def main(argv: Sequence[str]) -> None:
    """Compiles and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    tokens = 1 + _FRAMES.value // TUBELET[0] * (_SIZE.value // TUBELET[1]) * (_SIZE.value // TUBELET[2])
    title = f"{_LAYERS.value} layers of width {_WIDTH.value}, {tokens:,} tokens, jax {jax.__version__}"
    rows = []
    if not _JSON.value:
        print(f"{title}\nkind    context  temporary GB  of one   sent GB")
    for kind in KINDS:
        for context in _CONTEXT.value:
            rows.append(found := row(kind, context))
            first = next(each for each in rows if each["kind"] == kind)["temporary_bytes"]
            sent = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in found["sent_bytes"].items() if size > 5e6)
            if not _JSON.value:
                size = found["temporary_bytes"]
                print(f"{kind:<7} {context:7d}  {size / 1e9:12.2f}  {size / first:6.3f}   {sent or '-'}", flush=True)
    if _JSON.value:
        print(json.dumps({"of": title, "rows": rows}))


if __name__ == "__main__":
    app.run(main)
