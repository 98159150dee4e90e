"""What decoding a few cropped frames of a chunk costs: all ways, and all ways of encoding the chunk, in one run.

    pip install -e '.[bench]'                                        # decord; torchcodec and cv2 are used where found
    python -m benchmarks.decode --videos=FOLDER --clips=8 --json=decode.json    # about ten minutes
    python -m benchmarks.decode --clips=1 --draws=6 --hd_clips=0 --notable      # a look at it

The first table is settings x (bytes, SSIM, PSNR, clips/s), from which the presets of vidlang.data.encode were chosen.
The others are tasks on chunks of the default preset:

    S1     4 frames in a random 1-2 s window of a 15 s chunk, RandomResizedCrop to 224: a short training clip
    S2     16 frames over the 15 s
    LONG   256 frames at 1 fps, which lie in 18 chunks
    HD     S1 on chunks of 720 lines

    bound  the packets that ours decodes, decoded by the same decoder, and nothing else
    ours   vidlang.data.decode
    all    every frame decoded and converted, the wanted ones cut after; seek the same after seeking; others by name

CPU time of the process on one core, medians; sides take turns. `--videos` names a folder of any videos; without it
footage is drawn, whose noise costs more bytes than real footage does, so that what is promised of bytes does not hold.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import app, flags
from av.video.reformatter import VideoReformatter

from benchmarks import _reference
from benchmarks._chunks import FPS, SECONDS, Coded, code, sources
from benchmarks._common import machine
from benchmarks._sides import Bound, Side, available
from vidlang.data.crops import CropBox, choose_crop
from vidlang.data.decode import decode, probe
from vidlang.data.encode import ENCODINGS, EncodeSettings
from vidlang.data.frames import choose_times
from vidlang.data.pixels import SCALER

DRAWS = flags.DEFINE_integer("draws", 48, "Clips to time for each side of S1; other tasks take fewer.")
CLIPS = flags.DEFINE_integer("clips", 4, "Chunks to encode in each way.")
HD_CLIPS = flags.DEFINE_integer("hd_clips", 1, "Chunks of 720 lines.")
TABLED = flags.DEFINE_bool("table", True, "All encodings, not only the default one and that of x264.")
VIDEOS = flags.DEFINE_string("videos", "", "A folder of videos to take the footage from; drawn when empty.")
JSON = flags.DEFINE_string("json", "", "A file for the figures.")

DEFAULT = "x264 default"
SIZE = (224, 224)
TABLE: dict[str, EncodeSettings | dict[str, str]] = {
    DEFAULT: {"preset": "medium", "crf": "23", "x264-params": "keyint=250:chromaloc=1:threads=1"},
    **ENCODINGS,
    "crf 23": EncodeSettings(crf=23),
    "crf 22": EncodeSettings(crf=22),
    "crf 21": EncodeSettings(crf=21),
    "GOP 30": EncodeSettings(gop_seconds=1),
    "filters": EncodeSettings(fast_decode=False),
    "7 B": EncodeSettings(b_frames=7, fixed_b=True),
}


@dataclass(frozen=True)
class Draw:
    """One clip to decode: frames of chunks (by number), and the crop in each."""

    parts: list[tuple[int, np.ndarray]]
    crops: list[CropBox]


def main(argv: list[str]) -> None:
    figures: dict[str, Any] = {"machine": machine()}
    print(figures["machine"])
    sides, missing = available()
    print("\n".join(missing))
    coded = encodings(sides, figures)
    chunks = [one.mp4 for one in coded["balanced"]]
    verify(chunks, figures)
    tasks = {
        "S1": ([draw_short(chunks, k, 4) for k in range(DRAWS.value)], list(sides)),
        "S2": ([draw_short(chunks, k, 16) for k in range(DRAWS.value // 3 + 1)], list(sides)),
        "LONG": (
            [draw_long(chunks, k) for k in range(DRAWS.value // 12 + 1)],
            [name for name in sides if name != "all"],
        ),
    }
    figures["tasks"] = {name: timed(name, chunks, draws, sides, names) for name, (draws, names) in tasks.items()}
    if HD_CLIPS.value:
        clips = sources(VIDEOS.value, HD_CLIPS.value, 720)
        chunks = [code(frames, ENCODINGS["balanced"], quality=False).mp4 for _, frames in clips]
        draws = [draw_short(chunks, k, 4) for k in range(DRAWS.value // 3 + 1)]
        figures["tasks"]["HD"] = timed("HD", chunks, draws, sides, list(sides))
    bars(figures)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def encodings(sides: dict[str, Side], figures: dict[str, Any]) -> dict[str, list[Coded]]:
    """Encodes the footage in all ways and times S1 on each; prints the table."""
    table = TABLE if TABLED.value else {name: TABLE[name] for name in (DEFAULT, "balanced")}
    coded: dict[str, list[Coded]] = {name: [] for name in table}
    for name, frames in sources(VIDEOS.value, CLIPS.value, 288):
        print(f"encoding {name}, {frames[0].shape[1]} x {frames[0].shape[0]}")
        for setting, settings in table.items():
            coded[setting].append(code(frames, settings))
    ways: dict[str, tuple[str, Side]] = {name: (name, decode) for name in table}
    if "decord" in sides:
        ways["decord"] = (DEFAULT, sides["decord"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(DRAWS.value):
        for way, (setting, side) in turned(ways, number):
            chunks = [one.mp4 for one in coded[setting]]
            seconds[way].append(cpu_seconds(run, side, chunks, draw_short(chunks, number, 4)))
    rows = figures["encodings"] = [row(name, coded[setting], seconds[name]) for name, (setting, _) in ways.items()]
    print(f"\n{'encoding':>16}   kB/chunk  x default    SSIM    PSNR   encode s   S1 ms   clips/s")
    for one in rows:
        share = one["kilobytes"] / rows[0]["kilobytes"]
        print(
            f"{one['name']:>16} {one['kilobytes']:10.0f} {share:10.2f} {one['ssim']:7.4f} {one['psnr']:7.2f}"
            f" {one['encode_s']:10.1f} {one['s1_ms']:7.2f} {1e3 / one['s1_ms']:9.1f}"
        )
    return coded


def row(name: str, coded: list[Coded], seconds: list[float]) -> dict[str, Any]:
    mean = {field: float(np.mean([getattr(one, field) for one in coded])) for field in ("ssim", "psnr", "seconds")}
    kilobytes = float(np.mean([len(one.mp4) for one in coded])) / 1e3
    return {
        "name": name,
        "kilobytes": kilobytes,
        "ssim": mean["ssim"],
        "psnr": mean["psnr"],
        "encode_s": mean["seconds"],
        "s1_ms": 1e3 * median(seconds),
    }


def draw_short(chunks: list[bytes], number: int, count: int) -> Draw:
    """Frames of one chunk: all over it when there are many, else within one to two seconds."""
    rng, chunk = np.random.default_rng(number), number % len(chunks)
    length = rng.uniform(1, 2) if count == 4 else float(SECONDS)
    start = rng.uniform(0, SECONDS - length)
    times_T = choose_times(rng, start, start + length, count, name="segments")
    return Draw([(chunk, np.floor(times_T * FPS).astype(int))], [_crop(chunks[chunk], rng)])


def draw_long(chunks: list[bytes], number: int) -> Draw:
    """A frame a second of a video of 18 chunks, which the given ones stand for."""
    rng = np.random.default_rng(number)
    frames_T = np.floor((rng.uniform(0, 18 * SECONDS - 256) + np.arange(256)) * FPS).astype(int)
    parts = [
        (chunk % len(chunks), frames_T[frames_T // (SECONDS * FPS) == chunk] % (SECONDS * FPS)) for chunk in range(18)
    ]
    parts = [(chunk, part_T) for chunk, part_T in parts if len(part_T)]
    return Draw(parts, [_crop(chunks[chunk], np.random.default_rng(number)) for chunk, _ in parts])


def _crop(mp4: bytes, rng: np.random.Generator) -> CropBox:
    info = probe(mp4)
    return choose_crop(rng, info.height, info.width, name="random_resized")


def run(side: Side, chunks: list[bytes], draw: Draw) -> None:
    for (chunk, frames_T), crop in zip(draw.parts, draw.crops, strict=True):
        side(chunks[chunk], frames_T, crop, SIZE)


def timed(
    task: str, chunks: list[bytes], draws: list[Draw], sides: dict[str, Side], names: list[str]
) -> dict[str, Any]:
    """CPU milliseconds of each side on the same draws, in turns; prints them."""
    bound = Bound()
    seconds: dict[str, list[float]] = {name: [] for name in ("bound", *names)}
    for number, draw in enumerate([draws[0], *draws]):  # the first again: it warms caches
        for name in [name for name, _ in turned(seconds, number)]:
            if name == "bound":
                runs = [bound.prepare(chunks[chunk], frames_T) for chunk, frames_T in draw.parts]
                seconds[name].append(sum(map(cpu_seconds, runs)))
            else:
                seconds[name].append(cpu_seconds(run, sides[name], chunks, draw))
    medians = {name: 1e3 * median(values[1:]) for name, values in seconds.items()}
    print(f"\n{task}: medians of {len(draws)} draws")
    for name, values in seconds.items():
        low, high = 1e3 * np.percentile(values[1:], [10, 90])
        print(
            f"{name:>24}: {medians[name]:8.2f} ms ({low:.1f} to {high:.1f}) {1e3 / medians[name]:8.1f} a second"
            f" {medians[name] / medians['ours']:8.2f} x ours"
        )
    return {"milliseconds": medians, "draws": len(draws)}


def verify(chunks: list[bytes], figures: dict[str, Any]) -> None:
    """Frames are those of decoding in order with the same scaler, and near to exact scaling."""
    errors, equal, draws = [], 0, min(len(chunks), 8)
    for number in range(draws):
        draw = draw_short(chunks, number, 4)
        (chunk, frames_T), crop = draw.parts[0], draw.crops[0]
        got_THWC = decode(chunks[chunk], frames_T, crop, SIZE)
        pieces = pieces_in_order(chunks[chunk], set(frames_T.tolist()), crop)
        scaler = VideoReformatter()
        same = [
            scaler.reformat(pieces[k], *SIZE, format="gbrp", interpolation=SCALER, threads=1) for k in frames_T.tolist()
        ]
        equal += all(np.array_equal(a.to_ndarray(), b) for a, b in zip(same, got_THWC, strict=True))
        exact = [_reference.scaled(_reference.rgb(_reference.planes(pieces[k])), *SIZE) for k in frames_T.tolist()]
        errors.append(float(np.abs(got_THWC - np.stack(exact)).mean()))
    figures["exactness"] = {
        "draws": draws,
        "bit_identical": equal,
        "mean_error": float(np.mean(errors)),
        "worst": max(errors),
    }
    print(
        f"\nours is bit-identical to decoding in order in {equal} of {draws} clips; mean distance to exact scaling "
        f"{np.mean(errors):.2f} grey levels, {max(errors):.2f} in the worst clip"
    )


def pieces_in_order(mp4: bytes, wanted: set[int], crop: CropBox) -> dict[int, av.VideoFrame]:
    """The wanted frames of decoding everything, each cut by libavfilter."""
    with av.open(io.BytesIO(mp4), "r") as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        box = f"{crop.width}:{crop.height}:{crop.left}:{crop.top}:exact=1"
        nodes = graph.add_buffer(template=stream), graph.add("crop", box), graph.add("buffersink")
        graph.link_nodes(*nodes).configure()
        found: dict[int, av.VideoFrame] = {}
        for rank, frame in enumerate(container.decode(stream)):
            if rank in wanted:
                nodes[0].push(frame)
                piece = nodes[2].pull()
                assert isinstance(piece, av.VideoFrame)
                found[rank] = piece
    return found


def bars(figures: dict[str, Any]) -> None:
    """What was promised, and what was measured."""
    s1 = figures["tasks"]["S1"]["milliseconds"]
    rows = {one["name"]: one for one in figures["encodings"]}
    default, balanced = rows[DEFAULT], rows["balanced"]
    found = [
        ("ours / bound", s1["bound"] / s1["ours"], 0.70),
        ("ours / all", s1["all"] / s1["ours"], 20),
        ("SSIM, default preset - x264 default", balanced["ssim"] - default["ssim"], 0),
        ("bytes left to 2 x x264 default (share)", 2 - balanced["kilobytes"] / default["kilobytes"], 0),
    ]
    if "decord" in s1:
        found.append(("ours / decord", s1["decord"] / s1["ours"], 2))
        found.append(("ours / decord on x264 default", rows["decord"]["s1_ms"] / balanced["s1_ms"], 5))
    codecs = [value for name, value in s1.items() if name.startswith("torchcodec")]
    if codecs:
        found.append(("ours / torchcodec", min(codecs) / s1["ours"], 1.5))
    found.append(("0.5 grey levels - distance to exact", 0.5 - figures["exactness"]["worst"], 0))
    figures["bars"] = [{"name": name, "value": value, "bar": bar, "met": value >= bar} for name, value, bar in found]
    print()
    for one in figures["bars"]:
        print(f"{one['name']:>40}: {one['value']:8.4f}, promised {one['bar']}: {'met' if one['met'] else 'NOT MET'}")


def turned(sides: dict[str, Any], number: int) -> list[tuple[str, Any]]:
    """The sides, each first in its turn."""
    items = list(sides.items())
    return items[number % len(items) :] + items[: number % len(items)]


def cpu_seconds(work: Callable[..., Any], *arguments: Any) -> float:
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


def median(values: list[float]) -> float:
    return float(np.median(values))


if __name__ == "__main__":
    app.run(main)
