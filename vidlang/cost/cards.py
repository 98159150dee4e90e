"""Accelerators by name, and how long a step takes on one at least: an estimate from three numbers, no measurement."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.config import did_you_mean

GB = 1e9
# Of the printed peak, what matrix products of a transformer reach in practice when nothing waits.
UTILISATION = 0.4


@dataclass(frozen=True)
class Card:
    """Peak operations a second in two types of numbers, bytes of memory, and bytes a second to and from it.

    link: bytes a second that the card sends to others of its slice or machine, over all its links; dcn: its share of
    what its machine sends to others. 0 where nobody knows.
    """

    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    link: float = 0.0
    dcn: float = 0.0


# Peaks are dense, without the factor 2 of structured sparsity. float32 is what JAX's default precision computes: TF32
# on GPUs with tensor cores, one pass of bfloat16 on TPUs. Links are one direction of what is printed for both; the
# network of GPU machines is one adapter a card as in NVIDIA's reference machines (400 Gb/s, 200 for A100). An eighth of
# 100 Gb/s for cards of workstations is an assumption. That of TPUs is the pod's over its chips; for v4 the v5e's is
# assumed.
CARDS: dict[str, Card] = {
    # NVIDIA H100 Tensor Core GPU datasheet, SXM5 column.
    "H100": Card(989.4e12, 494.7e12, 80 * GB, 3350 * GB, 450 * GB, 50 * GB),
    # NVIDIA H200 datasheet: the chip of the H100 with HBM3e.
    "H200": Card(989.4e12, 494.7e12, 141 * GB, 4800 * GB, 450 * GB, 50 * GB),
    # NVIDIA A100 datasheet, 40 GB and 80 GB SXM.
    "A100-40": Card(312e12, 156e12, 40 * GB, 1555 * GB, 300 * GB, 25 * GB),
    "A100-80": Card(312e12, 156e12, 80 * GB, 2039 * GB, 300 * GB, 25 * GB),
    # NVIDIA L40S datasheet; half of the figures given with sparsity.
    "L40S": Card(362e12, 183e12, 48 * GB, 864 * GB, 32 * GB, 1.56 * GB),
    # NVIDIA RTX A5000 datasheet, tensor performance 222.2 TFLOPS with sparsity at half precision.
    "A5000": Card(111.1e12, 55.6e12, 24 * GB, 768 * GB, 32 * GB, 1.56 * GB),
    # NVIDIA Ada GPU architecture whitepaper, appendix A: float32 accumulation.
    "RTX4090": Card(165.2e12, 82.6e12, 24 * GB, 1008 * GB, 32 * GB, 1.56 * GB),
    # Google Cloud TPU documentation, "System architecture", per chip.
    "v4": Card(275e12, 275e12, 32 * GB, 1228 * GB, 300 * GB, 3.125 * GB),
    "v5e": Card(197e12, 197e12, 16 * GB, 819 * GB, 200 * GB, 3.125 * GB),
    "v5p": Card(459e12, 459e12, 95 * GB, 2765 * GB, 600 * GB, 6.25 * GB),
    "v6e": Card(918e12, 918e12, 32 * GB, 1640 * GB, 400 * GB, 12.5 * GB),
}


def find_card(name: str) -> Card:
    """The card of this name; "cpu" is the machine here, measured."""
    if name.lower() == "cpu":
        return measure_cpu()
    known = {card.lower(): card for card in CARDS}
    if name.lower() not in known:
        raise ValueError(
            f"unknown card {name!r}{did_you_mean(name, CARDS)}; there are: {', '.join(CARDS)}, and cpu for this machine"
        )
    return CARDS[known[name.lower()]]


def measure_cpu(size: int = 1024, rounds: int = 3) -> Card:
    """This machine: the fastest of a few products of square matrices and of a few copies, in about a second."""
    device = jax.devices("cpu")[0]
    peaks = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jax.device_put(np.ones((size, size), dtype), device)
        product = jax.jit(jnp.matmul).lower(x, x).compile()
        peaks[dtype] = 2 * size**3 / _fastest(functools.partial(_finish, product, x), rounds)
    block = np.ones(2**26, np.uint8)
    copied = np.empty_like(block)
    copy = _fastest(lambda: np.copyto(copied, block), rounds)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Card(peaks[jnp.bfloat16], peaks[jnp.float32], float(memory), 2 * block.size / copy)


def step_seconds(card: Card, dtype: str, *, flops: float, traffic: float, utilisation: float = UTILISATION) -> float:
    """An estimate for one device: whichever takes longer, its operations or its bytes. Waiting for others is not in."""
    if not 0.0 < utilisation <= 1.0:
        raise ValueError(f"utilisation is the share of a card's peak that is reached, in (0, 1]; found {utilisation}")
    peak = card.bfloat16 if dtype == "bfloat16" else card.float32
    return max(flops / (peak * utilisation), traffic / card.bandwidth)


def _finish(product: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    return product(x, x).block_until_ready()


def _fastest(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of a few runs, after one that does not count."""
    seconds = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
