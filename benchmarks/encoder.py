"""What dropping tokens and what recomputing activations is worth: forward + backward of one small video encoder.

Run: python benchmarks/encoder.py     (under a minute on two cores; sizes are tiny, ratios are what to read)

Each table shows both sides in one run: the whole clip against a quarter of its tokens, and the three remat policies
against each other. Memory is the compiler's count of temporary bytes, which is exact on every platform.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.models.video import Model
from vidlang.ops.dials import Dials

TRANSFORMER = {"layers": 4, "width": 128, "heads": 2, "mlp": 512, "dtype": "float32"}
CLIP = (2, 8, 128, 128, 3)  # 4 x 8 x 8 = 256 tokens a clip
REPEATS = 5


def inputs() -> tuple[Any, jax.Array, jax.Array]:
    """Parameters, a clip and a key: the same for every setting, for no dial and no policy changes a parameter."""
    video_BTHWC = jnp.asarray(np.random.default_rng(0).integers(0, 256, CLIP), jnp.uint8)
    init = jax.jit(lambda key: nn.unbox(Model(TRANSFORMER).init(key, video_BTHWC, train=False)))
    return init(jax.random.key(0)), video_BTHWC, jax.random.key(1)


def compiled_step(arguments: tuple[Any, ...], mask: float, remat: str) -> tuple[Callable[[], Any], int]:
    """A compiled gradient step ready to call, and its temporary bytes."""
    model = Model(TRANSFORMER | {"remat": remat})

    def loss(params: Any, video_BTHWC: jax.Array, key: jax.Array) -> jax.Array:
        output: Any = model.apply(params, video_BTHWC, train=True, dials=Dials(mask=mask), rngs={"mask": key})
        return jnp.square(output.pooled_BD).sum()

    step = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    memory: Any = step.memory_analysis()
    return lambda: jax.block_until_ready(step(*arguments)), memory.temp_size_in_bytes


def seconds(steps: list[Callable[[], Any]]) -> list[float]:
    """Best time of each; the steps take turns, so that a busy machine slows all of them alike."""
    best = [float("inf")] * len(steps)
    for repeat in range(REPEATS + 1):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if repeat:  # the first round warms up
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def compare(title: str, arguments: tuple[Any, ...], settings: dict[str, tuple[float, str]]) -> None:
    """Prints time and memory of each setting, and their ratios to the first."""
    steps, sizes = zip(*(compiled_step(arguments, *setting) for setting in settings.values()), strict=True)
    times = seconds(list(steps))
    print(f"{title:<22}{'ms a step':>12}{'speed':>9}{'temporary MB':>15}{'memory':>9}")
    for name, took, size in zip(settings, times, sizes, strict=True):
        speed, memory = times[0] / took, size / sizes[0]
        print(f"  {name:<20}{1e3 * took:>12.1f}{speed:>8.2f}x{size / 1e6:>15.1f}{memory:>8.2f}x")


def main() -> None:
    device = jax.devices()[0]
    print(f"{jax.device_count()} x {device.device_kind}; clip {CLIP}; {TRANSFORMER}")
    arguments = inputs()
    compare("mask dial", arguments, {"mask 0": (0.0, "none"), "mask 0.75": (0.75, "none")})
    compare("remat (mask 0)", arguments, {name: (0.0, name) for name in ("none", "dots", "full")})


if __name__ == "__main__":
    main()
