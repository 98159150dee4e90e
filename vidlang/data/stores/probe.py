"""Looks at one video of a folder that is adopted: what its row of the index is, or why it is left out.

What real folders of chunks have: a last chunk without a frame (262 bytes that cutting leaves behind an even end), which
is left out; chunks of 449 or 451 frames where 450 were meant, which are kept, as times are counted from the start of
their chunk; and chunks missing in the middle, of another size or rate, or broken, with which the video is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vidlang.data.container import VideoInfo, iterate_frames
from vidlang.data.decode import probe as probe_mp4
from vidlang.data.failures import BrokenVideo
from vidlang.data.mp4 import NotIndexed, read_index
from vidlang.data.stores.images import image_size
from vidlang.data.stores.index import checksum
from vidlang.data.stores.remote import Folder, LocalFolder, open_folder

EMPTY_BYTES = 1024  # an MP4 without a frame has fewer
EVEN = 1e-6  # seconds by which frame times may be off and still count as evenly spaced


@dataclass(frozen=True)
class Task:
    """One video to look at: where, in which layout, its name in the store, and its files."""

    folder: str
    layout: str
    name: str
    files: list[str]


@dataclass(frozen=True)
class Found:
    """What a look at one video gave; `row` is None when it cannot be adopted."""

    name: str
    row: dict[str, Any] | None = None
    kind: str = ""
    reason: str = ""
    notes: Sequence[str] = ()
    times: Sequence[float] | None = None
    cut_seconds: float | None = None


def probe(task: Task) -> Found:
    """Reads all files of a video."""
    folder = open_folder(task.folder)
    look = {"images": _image, "videos": _video}.get(task.layout, _chunks)
    try:
        return look(folder, task)
    except BrokenVideo as error:
        return Found(task.name, kind=error.kind, reason=str(error))
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        return Found(task.name, kind=kind, reason=f"it cannot be read: {error}")


def probe_record(number: int, record: dict[str, Any]) -> Found:
    """An image that is a record of a TFDS dataset."""
    name = str(number)
    content = record.get("image", [b""])[0]
    if not isinstance(content, bytes):
        return Found(name, kind="unsupported", reason="its feature 'image' does not hold encoded bytes")
    try:
        height, width = image_size(content)
        row = _row(VideoInfo(1, 1.0, width, height, 1.0), [1], [checksum(content)])
    except BrokenVideo as error:
        return Found(name, kind=error.kind, reason=str(error))
    return Found(name, row | {"first_record": number})


def _row(info: VideoInfo, counts: Sequence[int], checksums: Sequence[str]) -> dict[str, Any]:
    if min(info.width, info.height) < 2:
        raise BrokenVideo(
            f"its frames have {info.width} x {info.height} pixels, no crop fits in less than 2 x 2", "unsupported"
        )
    return {
        "chunks": len(counts),
        **{name: getattr(info, name) for name in ("fps", "width", "height", "frames", "duration")},
        "chunk_frames": list(counts),
        "checksum": list(checksums),
    }


def _files(folder: Folder, names: Sequence[str]) -> dict[str, Any]:
    states = [folder.state(name) for name in names]
    return {"file": list(names), "bytes": [size for size, _ in states], "modified_ns": [when for _, when in states]}


def _image(folder: Folder, task: Task) -> Found:
    content = folder.read(task.files[0])
    height, width = image_size(content)
    row = _row(VideoInfo(1, 1.0, width, height, 1.0), [1], [checksum(content)])
    return Found(task.name, row | _files(folder, task.files))


def _video(folder: Folder, task: Task) -> Found:
    content = folder.content(task.files[0])
    notes = []
    try:
        index = read_index(content)
        info, times = probe_mp4(content), index.times
    except NotIndexed as reason:
        info, times = _timed(folder, task.files[0], content)
        notes.append(f"every clip is decoded from the video's start, because {reason}")
    even = np.abs(times - np.arange(len(times)) / info.fps).max() <= EVEN
    row = _row(info, [info.frames], [checksum(content)])
    return Found(task.name, row | _files(folder, task.files), notes=notes, times=None if even else times.tolist())


def _timed(folder: Folder, name: str, content: bytes | memoryview) -> tuple[VideoInfo, np.ndarray]:
    """What a video holds and the times of its frames after the first, by decoding all of it."""
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(name).suffix) as copy:
        if isinstance(folder, LocalFolder):
            path = folder.local(name)
        else:
            copy.write(content)
            copy.flush()
            path = Path(copy.name)
        size, times = (0, 0), []
        for frame_HWC, seconds in iterate_frames(path):
            size = frame_HWC.shape[:2]
            times.append(seconds)
    times_T = np.array(times) - times[0]
    # How long the last frame is shown is nowhere said.
    last = float(np.median(np.diff(times_T))) if len(times) > 1 else 1 / 25
    duration = float(times_T[-1]) + last
    return VideoInfo(len(times), len(times) / duration, size[1], size[0], duration), times_T


def _chunks(folder: Folder, task: Task) -> Found:
    files = sorted(task.files, key=lambda name: int(PurePosixPath(name).stem))
    infos, sums, notes = [], [], []
    for place, name in enumerate(files):
        content = folder.read(name)
        try:
            info = probe_mp4(content)
        except BrokenVideo as error:
            # What cutting leaves behind a video whose length is a multiple of the chunks'.
            if place and place == len(files) - 1 and len(content) < EMPTY_BYTES:
                notes.append(f"its last chunk {PurePosixPath(name).name!r} of {len(content)} bytes is empty, left out")
                files = files[:-1]
                break
            raise BrokenVideo(f"its chunk {PurePosixPath(name).name!r}: {error}", error.kind) from error
        infos.append(info)
        sums.append(checksum(content))
    cut = _cut(task, files, infos)
    counts = [info.frames for info in infos]
    notes += _odd_counts(counts)
    first = infos[0]
    begun = (len(counts) - 1) * (cut or 0)
    total = VideoInfo(sum(counts), first.fps, first.width, first.height, begun + counts[-1] / first.fps)
    return Found(
        task.name, _row(total, counts, sums) | _files(folder, files), notes=notes, cut_seconds=cut if cut else None
    )


def _odd_counts(counts: Sequence[int]) -> list[str]:
    """Inner chunks that hold another number of frames than most."""
    inner = counts[:-1]
    if not inner:
        return []
    usual = int(np.bincount(inner).argmax())
    odd = [f"{place} has {count}" for place, count in enumerate(inner) if count != usual]
    return [f"of its chunks, which have {usual} frames, {', '.join(odd)}"] if odd else []


def _cut(task: Task, files: Sequence[str], infos: Sequence[VideoInfo]) -> float | None:
    """How many seconds chunks begin apart, None where there is only one; BrokenVideo when they do not fit."""
    numbers = [int(PurePosixPath(name).stem) for name in files]
    step = numbers[1] - numbers[0] if len(numbers) > 1 and task.layout == "seconds" else 1
    if len(set(numbers)) != len(numbers):
        raise BrokenVideo("two of its chunks have the same number", "unsupported")
    if task.layout == "seconds" and len(numbers) > 2:
        step = min(after - before for before, after in zip(numbers, numbers[1:], strict=False))
    for place, number in enumerate(numbers):
        if number != place * step:
            raise BrokenVideo(f"its chunk '{place * step}.mp4' is missing", "missing")
    first = infos[0]
    for place, info in enumerate(infos):
        if (info.width, info.height) != (first.width, first.height):
            raise BrokenVideo(f"its chunk {place} has another size than its first", "unsupported")
        # Of a few frames the rate is known only so well.
        if abs(info.fps - first.fps) * info.duration > 1.5 + 0.001 * info.frames:
            raise BrokenVideo(f"its chunk {place} has {info.fps:.2f} frames a second, its first {first.fps:.2f}")
    if len(numbers) < 2:
        return None
    seconds = float(step) if task.layout == "seconds" else _rounded(first.duration)
    for place, info in enumerate(infos[:-1]):
        if abs(info.duration - seconds) > 1.5 / first.fps + 0.01 * seconds:
            raise BrokenVideo(
                f"its chunk {place} lasts {info.duration:.2f} s and the next begins {seconds:g} s after it", "truncated"
            )
    return seconds


def _rounded(seconds: float) -> float:
    """The whole number of seconds that was meant, or, where none is near, what is measured to a hundredth."""
    return float(round(seconds)) if abs(seconds - round(seconds)) < 0.1 else round(seconds, 2)
