"""Any video that PyAV can read, front to back: the source of precutting and the slow path of decoding.

Only reading in order gives the right frame at the right place in every container and codec; seeking does not.
"""

from __future__ import annotations

import contextlib
import io
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter

from vidlang.data.failures import BrokenVideo
from vidlang.data.mp4 import NotIndexed, read_index
from vidlang.data.pixels import ACCURATE, quarter_turns, to_rgb

LONGEST_GAP = 600.0  # seconds between two frames; a damaged clock can claim centuries


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds; sizes are those of the upright picture."""

    frames: int
    fps: float
    width: int
    height: int
    duration: float


def iterate_frames(path: str | Path, short_side: int | None = None) -> Iterator[tuple[np.ndarray, float]]:
    """The upright frames of a video file in order, as (uint8 RGB [H,W,C], seconds), seconds strictly increasing.

    With `short_side` larger frames shrink to it, keep the aspect they are shown in, and get even sizes; smaller ones
    are not enlarged.
    """
    # The index of an MP4 tells at once, and before any work, that its end is missing.
    with contextlib.suppress(NotIndexed):
        read_index(map_file(Path(path)))
    reformatter = VideoReformatter()
    scaler = Interpolation.BICUBIC | ACCURATE
    size: tuple[int, int] | None = None
    before: float | None = None
    with _open(Path(path)) as (container, stream):
        period = _period(stream)
        # AVI stores no presentation times: what it gives is the order of decoding.
        timed = "avi" not in container.format.name.split(",")
        for number, frame in enumerate(_frames(container, stream)):
            turns = quarter_turns(frame)
            if size is None:
                size = _upright_size(frame, turns, stream.sample_aspect_ratio, short_side)
            seconds = frame.time if timed and frame.time is not None else number * period
            if before is not None and seconds <= before:
                seconds = before + period
            if before is not None and seconds - before > LONGEST_GAP:
                raise BrokenVideo(f"its clock jumps by {seconds - before:.0f} s at frame {number}")
            before = seconds
            yield to_rgb(frame, turns, *size, reformatter, scaler).copy(), seconds
    if before is None:
        raise BrokenVideo("no frame of it could be decoded")


def pick_frames(video: bytes | memoryview, ranks: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of these ranks, decoding everything up to the last of them."""
    if ranks and min(ranks) < 0:
        raise ValueError(f"frame {min(ranks)} asked of a video; frames are numbered from 0")
    missing = set(ranks)
    with _open(video) as (container, stream):
        for rank, frame in enumerate(_frames(container, stream)):
            if not missing:
                return
            if rank in missing:
                missing.remove(rank)
                yield rank, frame
    if missing:
        raise BrokenVideo(f"frame {min(missing)} was asked for, but the video ends before it")


def count_frames(video: bytes | memoryview | Path) -> VideoInfo:
    """What a video holds, by decoding all of it: headers of many files are wrong about it."""
    frames, first, last, size = 0, 0.0, 0.0, (0, 0)
    with _open(video) as (container, stream):
        period = _period(stream)
        for frame in _frames(container, stream):
            seconds = frames * period if frame.time is None else frame.time
            if frames == 0:
                first = seconds
                size = _upright_size(frame, quarter_turns(frame), None, None)
            frames, last = frames + 1, max(seconds, last)
    if not frames:
        raise BrokenVideo("no frame of it could be decoded")
    duration = last - first + period
    return VideoInfo(frames, frames / duration, size[1], size[0], duration)


def map_file(path: Path) -> memoryview:
    """A file's bytes, read when touched."""
    try:
        with open(path, "rb") as file:
            if not path.stat().st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ValueError(f"cannot read the video {str(path)!r}: {error.strerror}") from error


@contextlib.contextmanager
def _open(video: bytes | memoryview | Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """The container and its first video stream; closed at once also after errors, or its file would stay open."""
    # "file:" and the whitelist keep a hostile name or playlist from opening other files or addresses.
    source = f"file:{video}" if isinstance(video, Path) else io.BytesIO(video)
    try:
        container = av.open(source, "r", options={"protocol_whitelist": "file"})
    except av.FFmpegError as error:
        raise BrokenVideo(f"it cannot be read as a video: {error.strerror}") from error
    with container:
        if not container.streams.video:
            raise BrokenVideo("it has no video stream")
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        # By default libavcodec hides damage behind made-up pixels.
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def _frames(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    number = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise BrokenVideo(f"frame {number} is damaged")
            yield frame
            number += 1
    except av.FFmpegError as error:
        raise BrokenVideo(f"frame data is damaged near frame {number}: {error.strerror}") from error


def _period(stream: av.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise BrokenVideo("it states neither a frame rate nor frame times")
    return float(1 / rate)


def _upright_size(
    frame: av.VideoFrame, turns: int, pixel_aspect: Fraction | None, short_side: int | None
) -> tuple[int, int]:
    """Height and width of the upright frame, shrunk to `short_side` with square pixels when one is given."""
    height, width = float(frame.height), float(frame.width)
    if short_side is not None and pixel_aspect:
        width *= float(pixel_aspect)
    if turns % 2:
        height, width = width, height
    if short_side is None:
        return int(height), int(width)
    share = short_side / min(height, width)
    # Rounded to even numbers, but never beyond what is there: a small video keeps its size.
    sides = [max(2, min(2 * round(share * side / 2), 2 * int(side // 2))) for side in (height, width)]
    return sides[0], sides[1]
