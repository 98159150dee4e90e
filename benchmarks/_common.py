"""What several benchmarks share: what machine this is, footage to encode, and a fair stopwatch for programs."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np


def machine() -> str:
    """What the numbers were measured on."""
    cpu, names = platform.processor() or "unknown CPU", Path("/proc/cpuinfo")
    if names.exists():
        cpu = next((line.split(":")[1].strip() for line in names.read_text().splitlines() if "model name" in line), cpu)
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return (
        f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
        f"PyAV {av.__version__} (libavcodec {codec}), numpy {np.__version__}"
    )


def footage(seed: int, frames: int, height: int = 288, width: int = 512) -> Iterator[np.ndarray]:
    """A drifting textured scene with moving objects and camera noise, about as hard to code as plain footage."""
    rng = np.random.default_rng(seed)
    rows, columns = 2 * height, 2 * width
    spectrum = 1 / (1 + np.hypot(*np.meshgrid(np.fft.fftfreq(columns) * columns, np.fft.fftfreq(rows) * rows))) ** 1.6
    noise_HWC = rng.normal(size=(rows, columns, 3))
    scene_HWC = np.stack([np.fft.ifft2(spectrum * np.fft.fft2(noise_HWC[..., c])).real for c in range(3)], -1)
    scene_HWC = (127 + 60 * scene_HWC / scene_HWC.std()).astype(np.float32)
    noise_KHWC = rng.normal(0, 0.5, (8, height, width, 1)).astype(np.float32)
    objects = [(rng.uniform(0, 1, 4), rng.integers(20, 80, 2), rng.integers(0, 256, 3)) for _ in range(6)]
    for number in range(frames):
        turn = 2 * np.pi * number / 450
        top, left = int(height / 2 * (1 + 0.4 * np.sin(2 * turn))), int(width / 2 * (1 + 0.4 * np.sin(turn)))
        frame_HWC = scene_HWC[top : top + height, left : left + width] + noise_KHWC[number % 8]
        for (a, b, c, d), (tall, wide), colour in objects:
            y = int((height - tall) * (0.5 + 0.5 * np.sin(turn * (1 + 4 * a) + 7 * b)))
            x = int((width - wide) * (0.5 + 0.5 * np.sin(turn * (1 + 4 * c) + 7 * d)))
            frame_HWC[y : y + tall, x : x + wide] *= 0.4
            frame_HWC[y : y + tall, x : x + wide] += 0.6 * colour
        yield np.clip(frame_HWC, 0, 255).astype(np.uint8)


def take_turns(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each call of a jax program; they take turns, so that a busy machine slows all of them alike."""
    import jax

    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first round warms up
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
