"""What fused decode-and-crop is worth: the same random crops of the same frames, three ways, in one run.

    python -m benchmarks.decode                    # about half a minute, encodes its own clips
    python -m benchmarks.decode --draws=40

    all     decode every frame of the chunk in order, convert the wanted ones whole, cut, scale
    seek    open the container, one seek to the keyframe before the first wanted frame, then as above
    fused   vidlang.data.decode: raw packets, only what is needed, cut before conversion

`clip` wants 4 frames within one to two seconds (a short training clip), `spread` 16 over the whole chunk. CPU time of
the process, medians over draws; the three sides take turns. The second table is the house's chunk format, the first
has x264's default distance of keyframes and filters: how a chunk is encoded matters as much as how it is decoded.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import app, flags
from av.video.reformatter import VideoReformatter

from vidlang.data.crops import CropBox, choose_crop
from vidlang.data.decode import decode
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.frames import choose_times
from vidlang.data.pixels import SCALER

DRAWS = flags.DEFINE_integer("draws", 12, "Clips to time for each way and workload.")
CLIPS = flags.DEFINE_integer("clips", 2, "Chunks to encode for each format.")

SECONDS, FPS, HEIGHT, WIDTH, SIZE = 15, 30, 288, 512, (224, 224)
FORMATS = {
    "a keyframe every 250 frames": EncodeSettings(keyint=250, fast_decode=False),
    "house chunks, every 15": EncodeSettings(),
}
WORKLOADS = {"clip": 4, "spread": 16}


def main(argv: list[str]) -> None:
    print(machine())
    for name, settings in FORMATS.items():
        began = time.perf_counter()
        chunks = [encode_mp4(footage(seed), fps=FPS, settings=settings) for seed in range(CLIPS.value)]
        kilobytes = sum(map(len, chunks)) / len(chunks) / 1e3
        print(f"\n{name}: {len(chunks)} chunks of {SECONDS} s, {kilobytes:.0f} kB each, ", end="")
        print(f"encoded in {(time.perf_counter() - began) / len(chunks):.1f} s each")
        for workload, count in WORKLOADS.items():
            report(workload, compare(chunks, workload, count))


def compare(chunks: list[bytes], workload: str, count: int) -> dict[str, list[float]]:
    """CPU seconds of each way for the same draws."""
    ways: dict[str, Callable[..., np.ndarray]] = {"all": decode_all, "seek": decode_after_seek, "fused": decode}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for draw in range(DRAWS.value + 1):
        rng = np.random.default_rng(draw)
        length = rng.uniform(1, 2) if workload == "clip" else SECONDS
        start = rng.uniform(0, SECONDS - length)
        times_T = choose_times(rng, start, start + length, count, name="segments")
        frames_T = np.floor(times_T * FPS).astype(int)
        crop = choose_crop(rng, HEIGHT, WIDTH, name="random_resized")
        results = {}
        for way, function in ways.items():
            began = time.process_time()
            results[way] = function(chunks[draw % len(chunks)], frames_T, crop, SIZE).astype(int)
            seconds[way].append(time.process_time() - began)
        for way in ("all", "seek"):
            # Scaling after conversion rounds once more, so close is all that can be asked.
            difference = np.abs(results[way] - results["fused"]).mean()
            assert difference < 3, f"{way} and fused differ by {difference:.1f} levels"
    return {way: values[1:] for way, values in seconds.items()}  # the first warms caches


def report(workload: str, seconds: dict[str, list[float]]) -> None:
    medians = {way: float(np.median(values)) for way, values in seconds.items()}
    for way, median in medians.items():
        ratio = median / medians["fused"]
        low, high = np.percentile(seconds[way], [10, 90])
        print(
            f"  {workload:>6} {way:>6}: {1e3 * median:7.1f} ms ({1e3 * low:.1f} to {1e3 * high:.1f})"
            f" {1 / median:7.1f} clips/s a core   {ratio:5.1f} x fused"
        )


def decode_all(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    """Every frame of the chunk, as a loop over the container gives them."""
    with av.open(io.BytesIO(mp4), "r") as container:
        container.streams.video[0].thread_type = "NONE"
        wanted = {int(frame): None for frame in frames_T}
        reformatter = VideoReformatter()
        found = {
            rank: convert(frame, crop, size, reformatter)
            for rank, frame in enumerate(container.decode(video=0))
            if rank in wanted
        }
    return np.stack([found[int(frame)] for frame in frames_T])


def decode_after_seek(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    """One seek, then every frame up to the last wanted one."""
    with av.open(io.BytesIO(mp4), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = 1 / (FPS * (stream.time_base or Fraction(1)))
        container.seek(int(frames_T.min() * ticks), stream=stream)
        found, last, reformatter = {}, int(frames_T.max()), VideoReformatter()
        for frame in container.decode(stream):
            rank = round((frame.pts or 0) / ticks)
            if rank in frames_T:
                found[rank] = convert(frame, crop, size, reformatter)
            if rank >= last:
                break
    return np.stack([found[int(frame)] for frame in frames_T])


def convert(frame: av.VideoFrame, crop: CropBox, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """The whole frame to RGB, then the cut, then the scaling."""
    rgb_HWC = reformatter.reformat(frame, format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
    piece_HWC: Any = rgb_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    piece = av.VideoFrame.from_ndarray(np.ascontiguousarray(piece_HWC), format="rgb24")
    return (
        VideoReformatter().reformat(piece, width=size[1], height=size[0], interpolation=SCALER, threads=1).to_ndarray()
    )


def footage(seed: int) -> Iterator[np.ndarray]:
    """A drifting textured scene with moving objects and camera noise, about as hard to code as plain footage."""
    rng = np.random.default_rng(seed)
    spectrum = 1 / (1 + np.hypot(*np.meshgrid(np.fft.fftfreq(1024) * 1024, np.fft.fftfreq(640) * 640))) ** 1.6
    scene_HWC = np.stack(
        [np.fft.ifft2(spectrum * np.fft.fft2(rng.normal(size=(640, 1024)))).real for _ in range(3)], -1
    )
    scene_HWC = (127 + 60 * scene_HWC / scene_HWC.std()).astype(np.float32)
    noise_KHWC = rng.normal(0, 0.5, (8, HEIGHT, WIDTH, 1)).astype(np.float32)
    objects = [(rng.uniform(0, 1, 4), rng.integers(20, 80, 2), rng.integers(0, 256, 3)) for _ in range(6)]
    for number in range(SECONDS * FPS):
        turn = 2 * np.pi * number / (SECONDS * FPS)
        top, left = int(150 + 60 * np.sin(2 * turn)), int(250 + 100 * np.sin(turn))
        frame_HWC = scene_HWC[top : top + HEIGHT, left : left + WIDTH] + noise_KHWC[number % 8]
        for (a, b, c, d), (height, width), colour in objects:
            y = int((HEIGHT - height) * (0.5 + 0.5 * np.sin(turn * (1 + 4 * a) + 7 * b)))
            x = int((WIDTH - width) * (0.5 + 0.5 * np.sin(turn * (1 + 4 * c) + 7 * d)))
            frame_HWC[y : y + height, x : x + width] *= 0.4
            frame_HWC[y : y + height, x : x + width] += 0.6 * colour
        yield np.clip(frame_HWC, 0, 255).astype(np.uint8)


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


if __name__ == "__main__":
    app.run(main)
