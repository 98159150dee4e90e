"""What each dial saves: forward + backward of ViT-B-shaped layers on a clip of 4 x 196 tokens and cls, in one run.

    python -m benchmarks.dials                          twelve layers; five minutes on two cores
    python -m benchmarks.dials --layers=4 --json        quicker, and one line of JSON

All dials act on the same parameters. `time` and `memory` are ratios to everything off, `FLOPs` what the dial leaves of
the matrix products; memory is the compiler's count of temporary bytes. Drawn schedules run in one compiled program,
each at what its widths cost. "cut out" is a model of that width by itself, without a dial: what the width can cost at
best here. Attention alone, and longer clips, are in benchmarks/attention.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import app, flags

from benchmarks._common import machine, take_turns
from vidlang.cost.cards import CARDS, find_card
from vidlang.cost.trace import matmul_flops
from vidlang.models.video import Model
from vidlang.nn.slicing import slice_params
from vidlang.ops.dials import Dials, streams
from vidlang.ops.widths import SHARES, DrawnWidths, schedule

LAYERS = flags.DEFINE_integer("layers", None, "Layers; by default those of the model.")
MODEL = flags.DEFINE_enum("model", "B", ["B", "L"], "Whose layers: ViT-B or L.")
FRAMES = flags.DEFINE_integer("frames", 4, "Frames of 196 tokens.")
BATCH = flags.DEFINE_integer("batch", 1, "Clips of a step.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each; the median is shown.")
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of a table.")

SHAPES = {"B": (12, 768, 12, 3072), "L": (24, 1024, 16, 4096)}


def encoder(**options: Any) -> Model:
    """The model whose dials are turned: bfloat16 on accelerators, float32 on CPUs, which have no other."""
    layers, width, heads, mlp = SHAPES[MODEL.value]
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    transformer = {"layers": LAYERS.value or layers, "width": width, "heads": heads, "mlp": mlp, "dtype": dtype}
    return Model({**transformer, **options}, tubelet=(1, 16, 16), pool="cls")


def settings(layers: int) -> dict[str, dict[str, Any]]:
    """Name of a row -> its dials."""
    keep = tuple((layers * part // 4, 0.7) for part in (1, 2, 3))
    edges = {"local": 1, "random": 5, "block": 56}
    return {
        "all off": {},
        "width D/2": {"widths": "d-384"},
        "width D/4": {"widths": "d-192"},
        "widths d-dec": {"widths": "d-dec"},
        "mask 0.75": {"mask": 0.75},
        "edges (1, 5, 56)": {"edges": edges},
        "keep 0.7 x 3": {"keep": keep},
        "edges + keep": {"edges": edges, "keep": keep},
        "all four": {"mask": 0.5, "widths": "d-dec-high", "edges": edges, "keep": keep},
    }


def gradient(model: nn.Module, dials: Dials) -> Callable[..., Any]:
    """A gradient step, a function of parameters, clips and a drawn schedule."""

    def loss(params: Any, video_BTHWC: jax.Array, widths: Any) -> jax.Array:
        now = dials if widths is None else Dials(widths=widths)
        output: Any = model.apply(params, video_BTHWC, train=True, dials=now, rngs=streams(jax.random.key(0)))
        return jnp.square(output.pooled_BD).sum()

    return jax.grad(loss)


def rows() -> list[dict[str, Any]]:
    """One row for each setting, then one for each drawn schedule; all but the first relative to it."""
    model = encoder()
    spec = model.video_spec
    rng = np.random.default_rng(0)
    video_BTHWC = jnp.asarray(rng.integers(0, 256, (BATCH.value, FRAMES.value, 224, 224, 3)), jnp.uint8)
    params = jax.jit(lambda key: nn.unbox(model.init(key, video_BTHWC, train=False)))(jax.random.key(0))
    names: list[str] = []
    flops: list[int] = []
    programs: list[tuple[Any, tuple[Any, ...]]] = []
    for name, options in settings(spec.layers).items():
        step = gradient(model, Dials(**options))
        flops.append(matmul_flops(step, params, video_BTHWC, None))
        programs.append((jax.jit(step).lower(params, video_BTHWC, None).compile(), (params, video_BTHWC, None)))
        names.append(name)
    drawn = {name: _drawn(name, spec) for name in ("d-768", "d-dec", "d-384", "d-192")}
    traced = jax.jit(gradient(model, Dials())).lower(params, video_BTHWC, drawn["d-dec"]).compile()
    for name, widths in drawn.items():
        programs.append((traced, (params, video_BTHWC, widths)))
        names.append(f"drawn {name}")
        flops.append(0)
    for name in ("d-384", "d-192"):
        small, cut = slice_params(model, params["params"], name, video_BTHWC)
        arguments = {"params": cut}, video_BTHWC, None
        step = gradient(small, Dials())
        flops.append(matmul_flops(step, *arguments))
        programs.append((jax.jit(step).lower(*arguments).compile(), arguments))
        names.append(f"cut out {name}")
    times = take_turns([functools.partial(program, *arguments) for program, arguments in programs], REPEATS.value)
    sizes = [program.memory_analysis().temp_size_in_bytes for program, _ in programs]
    return [
        {
            "setting": name,
            "seconds": took,
            "flops": count,
            "time_ratio": took / times[0],
            "flops_ratio": count / flops[0] or None,
            "temporary_bytes": size,
            "memory_ratio": size / sizes[0],
        }
        for name, took, count, size in zip(names, times, flops, sizes, strict=True)
    ]


def speed(row: dict[str, Any]) -> str:
    """How many tokens a second the whole encoder trains, and what share of the device's peak that is, where known."""
    kind = jax.devices()[0].device_kind
    tokens = BATCH.value * (FRAMES.value * 196 + 1) / row["seconds"]
    rate = row["flops"] / row["seconds"]
    known = [name for name in CARDS if name.split("-")[0].lower() in kind.lower()]
    name = known[0] if known else "cpu"
    card = find_card(name)
    peak = card.float32 if name == "cpu" else card.bfloat16
    against = "this machine's fastest product of matrices" if name == "cpu" else f"the peak of {name}'s datasheet"
    return f"all off: {tokens:.0f} tokens/s, {rate / 1e12:.3g} TFLOP/s, {rate / peak:.0%} of {against}"


def _drawn(name: str, spec: Any) -> DrawnWidths:
    widths = schedule(name, layers=spec.layers, width=spec.width, head_size=spec.head_size)
    return DrawnWidths(jnp.asarray([SHARES.index(d / spec.width) for d in widths], jnp.int32), SHARES)


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    found = rows()
    what = f"{machine()}; {jax.devices()[0].device_kind}, jax {jax.__version__}, jaxlib {jaxlib.__version__}"
    if JSON.value:
        print(
            json.dumps(
                {"machine": what, "model": MODEL.value, "frames": FRAMES.value, "speed": speed(found[0]), "rows": found}
            )
        )
        return
    print(f"{what}\nViT-{MODEL.value} layers, {FRAMES.value} x 196 tokens + cls, batch {BATCH.value}")
    print(speed(found[0]))
    print(f"{'':<18}{'ms a step':>12}{'time':>8}{'FLOPs':>8}{'temporary MB':>15}{'memory':>9}")
    for row in found:
        flops = f"{row['flops_ratio']:>8.3f}" if row["flops_ratio"] else " " * 8
        print(
            f"{row['setting']:<18}{1e3 * row['seconds']:>12.1f}{row['time_ratio']:>8.3f}{flops}"
            f"{row['temporary_bytes'] / 1e6:>15.1f}{row['memory_ratio']:>9.3f}"
        )


if __name__ == "__main__":
    app.run(main)
