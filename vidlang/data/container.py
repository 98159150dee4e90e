"""Any video that PyAV can read, front to back: the source of precutting and the slow path of decoding.

Only reading in order gives the right frame at the right place in every container and codec; seeking does not.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from vidlang.data.failures import BrokenVideo, check_deadline
from vidlang.data.mp4 import NotIndexed, read_index
from vidlang.data.pixels import ACCURATE, MOST_PIXELS, quarter_turns, to_rgb

LONGEST_GAP = 600.0  # seconds between two frames; a damaged clock can claim centuries
# Between two frames on average, beyond one such gap: a slide may stand for long, but not each of them.
LONGEST_STILL = 60.0
# A damaged clock must not make days of video out of kilobytes: what is longer has so many bytes a second, or more.
SMALL_HOURS, LEAST_BYTES = 3600.0, 30.0
SLACK = 0.5  # seconds that a container may promise more than it holds; sound ones differ by hundredths
# Containers that hold one video in one file. Playlists name other files, and a picture or a text is no video.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf,rm,nut,gif,ivf,dv,h264,hevc"


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
    first, length = 0.0, os.stat(path).st_size
    with _open(Path(path)) as (container, stream):
        period = _period(stream)
        # AVI stores no presentation times: what it gives is the order of decoding.
        timed = not _is_avi(container)
        for number, frame in enumerate(_all_frames(container, stream)):
            turns = quarter_turns(frame)
            if size is None:
                size = _upright_size(frame, turns, stream.sample_aspect_ratio, short_side)
            seconds = frame.time if timed and frame.time is not None else number * period
            if before is not None and seconds <= before:
                seconds = before + period
            if before is not None and seconds - before > LONGEST_GAP:
                raise BrokenVideo(f"its clock jumps by {seconds - before:.0f} s at frame {number}")
            first = seconds if before is None else first
            _check_clock(seconds - first, number + 1, length)
            before = seconds
            yield to_rgb(frame, turns, *size, reformatter, scaler), seconds
    if before is None:
        raise BrokenVideo("no frame of it could be decoded", "empty")


def _check_clock(seconds: float, frames: int, length: int) -> None:
    """Raises when so few frames, of a file of `length` bytes, cannot be meant to last so long."""
    if seconds > min(LONGEST_GAP + LONGEST_STILL * frames, SMALL_HOURS + length / LEAST_BYTES):
        raise BrokenVideo(f"its clock is damaged: {frames} frames in a file of {length} bytes last {seconds:.0f} s")


def pick_frames(
    video: bytes | memoryview, ranks: set[int], deadline: float | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of these ranks, decoding everything up to the last of them, until time.monotonic() is `deadline`."""
    if ranks and min(ranks) < 0:
        raise ValueError(f"frame {min(ranks)} asked of a video; frames are numbered from 0")
    missing = set(ranks)
    with _open(video) as (container, stream):
        for rank, frame in enumerate(_frames(container, stream, deadline)):
            if not missing:
                return
            if rank in missing:
                missing.remove(rank)
                yield rank, frame
    if missing:
        raise BrokenVideo(f"frame {min(missing)} was asked for, but the video ends before it", "truncated")


def count_frames(video: bytes | memoryview | Path) -> VideoInfo:
    """What a video holds, by decoding all of it: headers of many files are wrong about it."""
    frames, first, last, size = 0, 0.0, 0.0, (0, 0)
    with _open(video) as (container, stream):
        period = _period(stream)
        for frame in _all_frames(container, stream):
            seconds = frames * period if frame.time is None else frame.time
            if frames == 0:
                first = seconds
                size = _upright_size(frame, quarter_turns(frame), None, None)
            frames, last = frames + 1, max(seconds, last)
    if not frames:
        raise BrokenVideo("no frame of it could be decoded", "empty")
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
        kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise BrokenVideo(f"cannot read the video {str(path)!r}: {error.strerror}", kind) from error


@contextlib.contextmanager
def _open(video: bytes | memoryview | Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """The container and its first video stream; closed at once also after errors, or its file would stay open."""
    # "file:" and the whitelists keep a hostile name or playlist from opening other files or addresses.
    source = f"file:{video}" if isinstance(video, Path) else io.BytesIO(video)
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        container = av.open(source, "r", options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise BrokenVideo("it is no video file: no video stream in a container that is read", "unsupported") from error
    except av.FFmpegError as error:
        raise BrokenVideo(f"it cannot be read as a video: {error.strerror}", _kind(error)) from error
    with container:
        # The cover of a film is a video stream of one picture.
        films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not films:
            raise BrokenVideo("it has no video stream", "unsupported")
        stream = films[0]
        if stream.codec_context is None:
            raise BrokenVideo("its video is in a codec that is not known here", "unsupported")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        # By default libavcodec hides damage behind made-up pixels.
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
        yield container, stream


def _kind(error: av.FFmpegError) -> str:
    """What sort of failure an error on opening is."""
    kinds = {FileNotFoundError: "missing", PermissionError: "unreadable", av.InvalidDataError: "damaged"}
    # Some containers call it an input error that their header goes on where the file ends.
    kind = "damaged" if error.errno == errno.EIO else "unsupported"
    return next((kind for sort, kind in kinds.items() if isinstance(error, sort)), kind)


def _frames(
    container: InputContainer, stream: av.VideoStream, deadline: float | None = None
) -> Iterator[av.VideoFrame]:
    yield from _decoded(container.demux(stream), deadline)


def _all_frames(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    yield from _decoded(_whole(container, stream))


def _whole(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """All packets of the stream; BrokenVideo after the last when the container had promised more.

    A file that was cut off between two packets reads without any error, as a shorter video.
    """
    start = end = 0.0
    count, slack = 0, SLACK + 2 * _period(stream)
    for packet in container.demux():
        ticks = packet.dts if packet.pts is None else packet.pts
        if ticks is not None and packet.size:
            seconds = float(ticks * packet.time_base)
            start, end = min(start, seconds), max(end, seconds + float((packet.duration or 0) * packet.time_base))
        if packet.stream.index == stream.index:
            count += packet.size > 0
            yield packet
    promised = (container.duration or 0) / av.time_base
    # Some containers count from zero, others from their first packet; without times there is nothing to compare.
    if 0 < end < promised + start - slack:
        raise BrokenVideo(f"it is truncated: it ends at {end:.2f} s and should last {promised:.2f} s", "truncated")
    # The length of an AVI is guessed from its bytes, but its header counts the frames.
    if _is_avi(container) and count < stream.frames - slack / _period(stream):
        raise BrokenVideo(f"it is truncated: it has {count} frames and should have {stream.frames}", "truncated")


def _is_avi(container: InputContainer) -> bool:
    return "avi" in container.format.name.split(",")


def _decoded(packets: Iterator[av.Packet], deadline: float | None = None) -> Iterator[av.VideoFrame]:
    number = 0
    try:
        for packet in packets:
            check_deadline(deadline)
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise BrokenVideo(f"frame {number} is damaged")
                yield frame
                number += 1
    except av.DecoderNotFoundError as error:
        raise BrokenVideo("its video is in a codec that is not known here", "unsupported") from error
    except av.FFmpegError as error:
        raise BrokenVideo(f"frame data is damaged near frame {number}: {error.strerror}") from error


def _period(stream: av.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise BrokenVideo("it states neither a frame rate nor frame times", "unsupported")
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
