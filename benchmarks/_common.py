"""What several benchmarks share: what machine this is, footage to encode, and how loaders usually decode."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidlang.data.crops import CropBox
from vidlang.data.pixels import SCALER


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


def decode_after_seek(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int], fps: int) -> np.ndarray:
    """One seek, then every frame up to the last wanted one, converted whole and cropped after."""
    with av.open(io.BytesIO(mp4), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = 1 / (fps * (stream.time_base or Fraction(1)))
        container.seek(int(frames_T.min() * ticks), stream=stream)
        found, last, reformatter = {}, int(frames_T.max()), VideoReformatter()
        for frame in container.decode(stream):
            rank = round((frame.pts or 0) / ticks)
            if rank in frames_T:
                found[rank] = crop_after(frame, crop, size, reformatter)
            if rank >= last:
                break
    return np.stack([found[int(frame)] for frame in frames_T])


def crop_after(frame: av.VideoFrame, crop: CropBox, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """The whole frame to RGB, then the cut, then the scaling."""
    rgb_HWC = reformatter.reformat(frame, format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
    piece_HWC: Any = rgb_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    piece = av.VideoFrame.from_ndarray(np.ascontiguousarray(piece_HWC), format="rgb24")
    return (
        VideoReformatter().reformat(piece, width=size[1], height=size[0], interpolation=SCALER, threads=1).to_ndarray()
    )
