"""Decode and crop at once: the only file that turns coded video into pixels.

What costs is the number of frames decoded. So frames are addressed by rank (their place in presentation order), only
the GOPs that hold a wanted one are touched, and in those every frame that nothing refers to and nobody wants is left
out. The crop is cut from the stored planes before conversion, so no pixel outside it is converted. The result is
bit-identical to decoding everything in order and doing the same cut and conversion.
"""

from __future__ import annotations

import bisect
import itertools
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vidlang.data.container import VideoInfo, count_frames, iterate_frames, map_file, pick_frames
from vidlang.data.crops import CropBox
from vidlang.data.failures import BrokenVideo, check_deadline
from vidlang.data.mp4 import Mp4Index, NotIndexed, read_index
from vidlang.data.pixels import MOST_PIXELS, Cutter, clip_shape, quarter_turns

__all__ = ["BrokenVideo", "VideoInfo", "decode", "iterate_frames", "probe"]

CACHED_DECODERS = 8
HELD_FRAMES = 8
UNSUPPORTED = (av.PatchWelcomeError, av.DecoderNotFoundError)


def probe(mp4: bytes | memoryview | str | Path) -> VideoInfo:
    """Counts a video's frames: from its index when it is an H.264 MP4, else by decoding all of it."""
    video = Path(mp4) if isinstance(mp4, str) else mp4
    try:
        index = read_index(map_file(video) if isinstance(video, Path) else video)
    except NotIndexed:
        return count_frames(video)
    frames = len(index.sizes)
    width, height = (index.height, index.width) if index.rotation % 2 else (index.width, index.height)
    if not index.seconds > 0:
        raise BrokenVideo("the MP4 index is damaged: its frames have no duration")
    return VideoInfo(frames, frames / index.seconds, width, height, index.seconds)


def decode(
    mp4: bytes | memoryview,
    frames: np.ndarray,
    crop: CropBox,
    size: tuple[int, int],
    out: np.ndarray | None = None,
    *,
    pixels: str = "rgb",
    deadline: float | None = None,
) -> np.ndarray:
    """The frames of the given ranks, cut by `crop` and scaled to `size`: uint8 [T, H, W, 3], or [T, H * 3 / 2, W].

    Ranks come in any order and may repeat. An H.264 MP4 is read at random; anything else that PyAV reads is decoded
    from its start, with a warning. Past the `deadline`, a time.monotonic(), it gives up with a BrokenVideo.
    """
    ranks_T = np.asarray(frames)
    if ranks_T.ndim != 1 or (ranks_T.size and ranks_T.dtype.kind not in "iu"):
        raise ValueError(f"frames must be a list of integers, got {ranks_T.dtype} of shape {list(ranks_T.shape)}")
    shape = clip_shape(len(ranks_T), size, pixels)
    clip = np.empty(shape, np.uint8) if out is None else out
    if clip.shape != shape or clip.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {list(shape)}, got {clip.dtype} {list(clip.shape)}")
    places: dict[int, list[int]] = {}
    for place, rank in enumerate(ranks_T.tolist()):
        places.setdefault(rank, []).append(place)
    data = memoryview(mp4)
    try:
        index = read_index(data)
    except NotIndexed as reason:
        warnings.warn(f"decoding a video from its start, because {reason}; precut it to make this fast", stacklevel=2)
        cutter = Cutter()
        for rank, frame in pick_frames(mp4, set(places), deadline):
            cutter.paste(frame, quarter_turns(frame), crop, clip, places[rank], pixels)
        return clip
    if places and not (0 <= min(places) and max(places) < len(index.sizes)):
        raise ValueError(f"frames {min(places)}..{max(places)} asked of a video of {len(index.sizes)} frames")
    decoder = _borrow(index)
    wanted = _planned_frames(data, index, list(places), decoder, deadline)
    # Some at a time: converting one by one, the codec and the scaler would push each other out of the caches.
    while held := list(itertools.islice(wanted, HELD_FRAMES)):
        for rank, frame in held:
            _check_size(frame, index)
            decoder.cutter.paste(frame, index.rotation, crop, clip, places[rank], pixels)
    # Only here, so that a decoder that met damage is not used again.
    _give_back(decoder)
    return clip


def _check_size(frame: av.VideoFrame, index: Mp4Index) -> None:
    if (frame.width, frame.height) != (index.width, index.height):
        raise BrokenVideo(
            f"its index says {index.width} x {index.height} pixels, its frames have {frame.width} x {frame.height}"
        )


class _Decoder:
    """One H.264 decoder with its cutter; opening them costs more than decoding a few frames."""

    def __init__(self, key: DecoderKey) -> None:
        self.key = key
        configuration, width, height = key
        # Coded frames are whole blocks, so a little larger than what is shown; more than that is damage.
        most = (width + 64) * (height + 64)
        if most > MOST_PIXELS:
            raise BrokenVideo(f"its frames of {width} x {height} pixels are larger than is read", "unsupported")
        self.context = av.CodecContext.create("h264", "r")
        self.context.extradata = configuration
        # One thread: more cost a fifth more work for little less delay, and there are other workers.
        self.context.thread_type, self.context.thread_count = "NONE", 1
        # By default libavcodec hides damage behind made-up pixels.
        self.context.options = {"err_detect": "explode", "max_pixels": str(most)}
        self.cutter = Cutter()


DecoderKey = tuple[bytes, int, int]
_idle: list[_Decoder] = []
_idle_lock = threading.Lock()


def _borrow(index: Mp4Index) -> _Decoder:
    """An idle decoder for videos like this, or a new one; each is used by one thread at a time."""
    key = index.configuration, index.width, index.height
    with _idle_lock:
        for place in reversed(range(len(_idle))):
            if _idle[place].key == key:
                return _idle.pop(place)
    return _Decoder(key)


def _give_back(decoder: _Decoder) -> None:
    with _idle_lock:
        _idle.append(decoder)
        del _idle[:-CACHED_DECODERS]


def _planned_frames(
    data: memoryview, index: Mp4Index, ranks: list[int], decoder: _Decoder, deadline: float | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of these ranks, each once, decoding as little as possible."""
    send = decoder.context.decode
    for start, targets in _plan(index, ranks):
        missing = set(index.ranks[targets].tolist())
        try:
            for packet in _packets(data, index, start, targets):
                check_deadline(deadline)
                for frame in send(packet):
                    rank = frame.pts
                    if rank is None or rank not in missing:
                        continue
                    if frame.is_corrupt:
                        raise BrokenVideo(f"frame {rank} is damaged")
                    missing.remove(rank)
                    yield rank, frame
        except av.FFmpegError as error:
            sentence = f"frame data is damaged near frame {min(missing, default=0)}: {error.strerror}"
            raise BrokenVideo(sentence, "unsupported" if isinstance(error, UNSUPPORTED) else "damaged") from error
        decoder.context.flush_buffers()
        if missing:
            raise BrokenVideo(f"frame {min(missing)} is in the index but does not decode: the data is damaged")


def _plan(index: Mp4Index, ranks: list[int]) -> list[tuple[int, list[int]]]:
    """The samples of these ranks in order, grouped by the sync sample that decoding them starts at."""
    groups: dict[int, list[int]] = {}
    starts = index.starts
    for sample in sorted(index.samples[ranks].tolist()):
        place = bisect.bisect_right(starts, sample) - 1
        groups.setdefault(starts[place] if place >= 0 else 0, []).append(sample)
    return list(groups.items())


def _packets(data: memoryview, index: Mp4Index, start: int, targets: list[int]) -> Iterator[av.Packet | None]:
    """The samples from a keyframe to its last target that are targets or that others refer to, then None: no more."""
    end = targets[-1] + 1
    offsets, sizes, ranks = (column[start:end].tolist() for column in (index.offsets, index.sizes, index.ranks))
    for sample, offset, size, rank in zip(range(start, end), offsets, sizes, ranks, strict=True):
        if not size:
            raise BrokenVideo(f"frame {rank} has no data")
        if sample in targets or _is_reference(data, offset, offset + size, index.length_size):
            # A copy, because libavcodec reads some bytes past the end of damaged frames: here they are zeros.
            packet = av.Packet(size)
            packet.update(bytes(data[offset : offset + size]))
            packet.pts = rank
            if sample == start:
                packet.is_keyframe = True
            yield packet
    yield None


def _is_reference(data: memoryview, place: int, end: int, length_size: int) -> bool:
    """Whether other frames may refer to the sample in data[place:end]: nal_ref_idc of its first slice."""
    while place + length_size < end:
        header = data[place + length_size]
        if header & 31 in (1, 2, 5):
            return header & 0x60 != 0
        place += length_size + int.from_bytes(data[place : place + length_size], "big")
    return True
