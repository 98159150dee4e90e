"""How long chunks should be, and what each step from a plain loader to ours brings: AVION's table 4 and figure 5.

    python -m benchmarks.chunk_length                       # about six minutes, mostly encoding a video of its own
    python -m benchmarks.chunk_length --video=FILE --chunk_s=15,300 --step_s=0.5 --json=chunk_length.json

The ladder starts where loaders usually are and changes one thing a row:

    long chunks      x264's default encoding, open the chunk, seek, decode to the last frame, convert whole, crop after
    short chunks     the same with the shortest chunks
    fused            frames chosen first, crop cut before conversion, unneeded frames left out
    house encoding   the same on chunks encoded for it

`ms` is the time of a clip in one process, `MB` what is read for it: the whole chunk, for that is how records and
files are read. `waits` is what a step of --step_s seconds, taken elsewhere (here: asleep, as a host is while its
accelerator works), has to wait for --workers processes that load --batch clips, as a share of the time.

The second table decodes in 1, 2, ... processes at once: latency of a clip and throughput of all.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import app, flags
from av.video.reformatter import VideoReformatter

from benchmarks._common import footage, machine
from vidlang.data.container import iterate_frames
from vidlang.data.crops import CropBox, choose_crop
from vidlang.data.decode import decode, probe
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.frames import choose_times
from vidlang.data.pixels import SCALER
from vidlang.data.workers.processes import end_with_parent

VIDEO = flags.DEFINE_string("video", None, "A video to cut, at least as long as the longest chunk; else one is made.")
CHUNKS = flags.DEFINE_list("chunk_s", ["15", "60", "300"], "Lengths of chunks in seconds.")
CLIPS = flags.DEFINE_integer("clips", 24, "Clips to time for each row.")
BATCH = flags.DEFINE_integer("batch", 16, "Clips of a step.")
STEP = flags.DEFINE_float("step_s", 0.2, "Seconds of a step.")
WORKERS = flags.DEFINE_integer("workers", 2, "Processes that load, and the most in the second table.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

FPS, SHORT_SIDE, SIZE, FRAMES = 30, 288, (224, 224), 4
ENCODINGS = {"x264 default": EncodeSettings(crf=23, keyint=250, fast_decode=False), "house": EncodeSettings()}


def decode_after_one_seek(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    """One seek, then every frame up to the last wanted one, converted whole and cropped after."""
    with av.open(io.BytesIO(mp4), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = 1 / (FPS * (stream.time_base or Fraction(1)))
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


WAYS: dict[str, Callable[..., np.ndarray]] = {"crop after": decode_after_one_seek, "fused": decode}


@dataclass(frozen=True)
class Case:
    """One way to load: where the chunks lie, how long they are, how they are decoded."""

    folder: str
    seconds: int
    way: str
    height: int
    width: int

    def clip(self, number: int) -> tuple[np.ndarray, int]:
        """The clip of this number, and how many bytes were read for it."""
        rng = np.random.default_rng(number)
        chunks = sorted(Path(self.folder).iterdir())
        mp4 = chunks[int(rng.integers(len(chunks)))].read_bytes()
        length = rng.uniform(1, 2)
        start = rng.uniform(0, self.seconds - length)
        times_T = choose_times(rng, start, start + length, FRAMES, name="segments")
        crop = choose_crop(rng, self.height, self.width, name="random_resized")
        return WAYS[self.way](mp4, np.floor(times_T * FPS).astype(int), crop, SIZE), len(mp4)


def main(argv: list[str]) -> None:
    print(machine())
    lengths = sorted(int(seconds) for seconds in CHUNKS.value)
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder), lengths)
        rows = [ladder_row(name, case) for name, case in cases.items()]
        show("one process", rows)
        first, last = list(cases)[0], list(cases)[-1]
        pools = [pool_row(f"{name}, {m} processes", cases[name], m) for name in (first, last) for m in pool_sizes()]
        show("processes at once", pools)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps({"machine": machine(), "ladder": rows, "processes": pools}, indent=1))


def make_cases(folder: Path, lengths: list[int]) -> dict[str, Case]:
    """The rows of the ladder, with their chunks encoded into `folder`."""
    wanted = [(f"{seconds} s, default, crop after", seconds, "x264 default", "crop after") for seconds in lengths[::-1]]
    wanted += [(f"{seconds} s, default, fused", seconds, "x264 default", "fused") for seconds in lengths[:1]]
    wanted += [(f"{seconds} s, house, fused", seconds, "house", "fused") for seconds in lengths]
    cases = {}
    for name, seconds, encoding, way in wanted:
        place = folder / f"{encoding}-{seconds}"
        if not place.exists():
            place.mkdir()
            encode_chunks(place, lengths[-1], seconds, ENCODINGS[encoding])
        info = probe(next(place.iterdir()))
        cases[name] = Case(str(place), seconds, way, info.height, info.width)
    return cases


def encode_chunks(place: Path, total: int, seconds: int, settings: EncodeSettings) -> None:
    """Chunks of `seconds` from the start of the video: a minute of short ones, one long one, or what `total` gives."""
    count = max(1, min(total, max(60, seconds)) // seconds)
    frames = source(total)
    for number in range(count):
        chunk = (frame for frame, _ in zip(frames, range(seconds * FPS), strict=False))
        (place / f"{number:04}.mp4").write_bytes(encode_mp4(chunk, fps=Fraction(FPS), settings=settings))


def source(seconds: int) -> Iterator[np.ndarray]:
    """Frames of the given video, at its own rate, or drifting textures."""
    if VIDEO.value:
        return (frame for frame, _ in iterate_frames(VIDEO.value, SHORT_SIDE))
    scenes = (footage(scene, FPS * 15, SHORT_SIDE) for scene in range(-(-seconds // 15)))
    return (frame for scene in scenes for frame in scene)


def ladder_row(name: str, case: Case) -> dict[str, Any]:
    """Time and bytes of a clip in this process, and the share of time that a training would wait."""
    case.clip(0)
    times, sizes = [], []
    for number in range(1, CLIPS.value + 1):
        began = time.process_time()
        _, size = case.clip(number)
        times.append(time.process_time() - began)
        sizes.append(size)
    return {
        "name": name,
        "ms": 1e3 * float(np.median(times)),
        "clips_per_second": 1 / float(np.mean(times)),
        "MB": float(np.mean(sizes)) / 1e6,
        "waits": waiting_share(case),
    }


def waiting_share(case: Case, steps: int = 6) -> float:
    """Share of the time that a consumer of batches waits while processes load ahead of it."""
    with multiprocessing.get_context("spawn").Pool(WORKERS.value, initializer=end_with_parent) as pool:
        ahead = 2  # batches that are being loaded or ready
        numbers = iter(range(1, 10**9))
        pending = [pool.map_async(_load, [(case, next(numbers)) for _ in range(BATCH.value)]) for _ in range(ahead)]
        waited, began = 0.0, 0.0
        for step in range(steps + 1):
            if step == 1:  # the first batch waits for imports
                waited, began = 0.0, time.perf_counter()
            before = time.perf_counter()
            pending.pop(0).get()
            waited += time.perf_counter() - before
            pending.append(pool.map_async(_load, [(case, next(numbers)) for _ in range(BATCH.value)]))
            time.sleep(STEP.value)
        return waited / (time.perf_counter() - began)


def pool_sizes() -> list[int]:
    return [m for m in (1, 2, 4, 8, 16, 32, 64) if m <= WORKERS.value]


def pool_row(name: str, case: Case, processes: int) -> dict[str, Any]:
    """Latency and throughput of so many processes at once."""
    with multiprocessing.get_context("spawn").Pool(processes, initializer=end_with_parent) as pool:
        pool.map(_load, [(case, 0)] * processes, chunksize=1)
        began = time.perf_counter()
        times = pool.map(_load, [(case, number) for number in range(1, CLIPS.value * processes + 1)], chunksize=2)
        wall = time.perf_counter() - began
    rate = len(times) / wall
    return {"name": name, "ms": 1e3 * float(np.median(times)), "clips_per_second": rate, "each": rate / processes}


def _load(job: tuple[Case, int]) -> float:
    began = time.perf_counter()
    job[0].clip(job[1])
    return time.perf_counter() - began


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table for people; the first row is what the others are compared with."""
    print(f"\n{title:32} {'ms':>8} {'clips/s':>9} {'x':>6} {'MB':>7} {'waits':>7}")
    for row in rows:
        ratio = row["clips_per_second"] / rows[0]["clips_per_second"]
        more = f"{row['MB']:7.2f} {row['waits']:7.0%}" if "MB" in row else f"{row['each']:7.1f} each"
        print(f"{row['name']:32} {row['ms']:8.1f} {row['clips_per_second']:9.1f} {ratio:6.1f} {more}")


if __name__ == "__main__":
    app.run(main)
