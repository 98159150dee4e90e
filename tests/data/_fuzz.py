"""Feeds mutated videos and stores to the readers, in a process of its own; test_fuzz.py starts it and reads its report.

    python _fuzz.py decode|store|cut MUTATIONS SEED FOLDER

The address space is limited, so an allocation beyond bounds fails at once, and so does a mutation that hangs. Each
mutation is a function of the seed and its number.
"""

import collections
import faulthandler
import gc
import io
import itertools
import json
import os
import resource
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vidlang.data.chunks import open_store
from vidlang.data.crops import CropBox
from vidlang.data.cutting.video import CutVideo, PrecutSettings, cut_chunks
from vidlang.data.decode import decode
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.adopt import adopt
from vidlang.data.stores.writer import write_store

HEIGHT, WIDTH, COUNT, FPS = 48, 64, 12, 10
CROP, SIZE, RANKS = CropBox(2, 4, 28, 40), (16, 16), np.array([2, 7, 11])
SETTINGS = PrecutSettings(chunk_seconds=1, fps=FPS, short_side=HEIGHT, encode=EncodeSettings(preset="ultrafast"))
SECONDS_EACH, MORE_MEMORY = 20, 1 << 30
EXTREMES = (0, 1, 2, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def scene(seed):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for t in range(COUNT):
        waves = [np.sin((x * (c + 1) + y * (2 - c)) / 7 + t / (2 + c) + seed) for c in range(3)]
        yield np.stack([127 + 95 * wave for wave in waves], -1).astype(np.uint8)


def coded(codec, container, **options):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=FPS, options={name.replace("_", "-"): v for name, v in options.items()})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(scene(2)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def videos():
    """Small files of several kinds; the first two are our own chunks."""
    x264 = {"preset": "ultrafast", "x264_params": "keyint=5:bframes=2:open-gop=1"}
    return [
        encode_mp4(scene(0), fps=FPS, settings=EncodeSettings(preset="ultrafast")),
        encode_mp4(scene(1), fps=FPS, settings=EncodeSettings(preset="veryfast", keyint=6)),
        coded("libx264", "mp4", **x264),
        coded("libvpx-vp9", "webm", cpu_used="8", deadline="realtime"),
        coded("libx265", "matroska", preset="ultrafast", x265_params="log-level=none:pools=none:frame-threads=1"),
        coded("mpeg4", "avi"),
    ]


def mutate(data, other, rng):
    """One thing that happens to bytes."""
    data, kind = bytearray(data), rng.integers(9)
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 65))
    head = int(rng.integers(min(len(data), 2000)))
    if kind == 0:
        flip(data, rng.integers(0, len(data), rng.integers(1, 17)), rng)
    elif kind == 1:
        flip(data, rng.integers(0, min(len(data), 2000), rng.integers(1, 9)), rng)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place : place + length] = rng.bytes(length)
    elif kind == 4:
        data[place : place + 8 * length] = bytes(8 * length)
    elif kind == 5:
        data[head : head + 4] = EXTREMES[rng.integers(len(EXTREMES))].to_bytes(4, "big")
    elif kind == 6:
        other_place = int(rng.integers(len(data)))
        first, second = data[place : place + length], data[other_place : other_place + length]
        data[place : place + len(second)] = second
        data[other_place : other_place + len(first)] = first
    elif kind == 7:
        data[:head] = other[:head]  # the header of another
    elif rng.random() < 0.5:
        del data[place : place + length]
    else:
        data[place:place] = rng.bytes(length)
    return bytes(data)


def flip(data, places, rng):
    for place in places:
        data[place] ^= 1 << int(rng.integers(8))


def fuzz_decode(files, expected, rng, folder):
    """Whatever the bytes, decode ends; a damaged decoder is never used again."""
    which = int(rng.choice(len(files), p=[0.35, 0.25, 0.1, 0.1, 0.1, 0.1]))
    broken = mutate(files[which], files[int(rng.integers(len(files)))], rng)
    pixels = ("rgb", "yuv420")[rng.integers(2)]
    try:
        clip = decode(broken, RANKS, CROP, SIZE, pixels=pixels)
    finally:
        assert np.array_equal(decode(files[0], RANKS, CROP, SIZE), expected), "a later decode was touched"
    return "decoded" if clip.any() else "black"


def fuzz_store(files, expected, rng, folder):
    """Any file of a store, of records or of whole files, is damaged: the frames are right, or there is an error."""
    kind = ("records", "files")[rng.integers(2)]
    names = sorted(path for path in (folder / kind).rglob("*") if path.is_file())
    weights = np.array([8.0 if "array_record" in path.name or path.suffix == ".mp4" else 1.0 for path in names])
    path = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    content = path.read_bytes()
    try:
        path.write_bytes(mutate(content, names[0].read_bytes(), rng) if content else b"x")
        store = open_store(folder / kind if kind == "records" else folder / kind / "store")
        for video in ("a", "b"):
            clip = store.decode(video, RANKS / FPS, CROP, SIZE)
            assert np.array_equal(clip, expected[video]), f"wrong frames after damage to {path.name}"
            assert store.read(video, 0) == files["ab".index(video)]
    finally:
        path.write_bytes(content)
    return "right"


def fuzz_cut(files, expected, rng, folder):
    """Whatever the source, it is cut or refused."""
    source, other = (files[int(rng.integers(len(files)))] for _ in range(2))
    path = folder / "source.bin"
    path.write_bytes(mutate(source, other, rng))
    return "cut" if sum(1 for _ in itertools.islice(cut_chunks(path, SETTINGS), 8)) else "nothing"


def prepare(kind, folder, files):
    """What right frames are."""
    if kind == "decode":
        return decode(files[0], RANKS, CROP, SIZE)
    if kind == "store":
        cut = [CutVideo(name, FPS, WIDTH, HEIGHT, [mp4], (COUNT,)) for name, mp4 in zip("ab", files, strict=False)]
        write_store(folder / "records", cut, SETTINGS)
        (folder / "files").mkdir()
        for one in cut:
            (folder / "files" / f"{one.name}.mp4").write_bytes(one.chunks[0])
        adopt(folder / "files", folder / "files" / "store", "videos")
        return {name: decode(mp4, RANKS, CROP, SIZE) for name, mp4 in zip("ab", files, strict=False)}
    return None


def memory():
    """Resident bytes and address space."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[1]) * resource.getpagesize(), int(pages[0]) * resource.getpagesize()


def main(kind, mutations, seed, folder):
    warnings.simplefilter("ignore")
    files, folder = videos(), Path(folder)
    expected = prepare(kind, folder, files)
    fuzz = {"decode": fuzz_decode, "store": fuzz_store, "cut": fuzz_cut}[kind]
    outcomes, worst, warm = collections.Counter(), 0.0, max(1, mutations // 4)
    for number in range(-3, mutations):
        if number == 0:
            limit = memory()[1] + MORE_MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if number == warm:
            gc.collect()
            resident, descriptors = memory()[0], len(os.listdir("/proc/self/fd"))
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
        began = os.times().elapsed
        try:
            outcome = fuzz(files, expected, np.random.default_rng((seed, max(number, 0))), folder)
        except BrokenVideo as error:
            outcome = error.kind
            assert str(error) and len(str(error).splitlines()) == 1, str(error)
        except ValueError as error:
            outcome = "refused"
            assert str(error) and "\n" not in str(error), str(error)
        except BaseException:
            print(f"mutation {number} of seed {seed}", file=sys.stderr)
            raise
        worst = max(worst, os.times().elapsed - began)
        outcomes[outcome] += 1
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    report = {
        "outcomes": outcomes,
        "worst_seconds": worst,
        "more_resident": memory()[0] - resident,
        "more_descriptors": len(os.listdir("/proc/self/fd")) - descriptors,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
