"""Decode and crop at once: the only file that turns coded video into pixels.

What costs is the number of frames decoded. So frames are addressed by rank (their place in presentation order), only
the GOPs that hold a wanted one are touched, and in those every frame that nothing refers to and nobody wants is left
out. The crop is cut from the stored planes before conversion, so no pixel outside it is converted. The result is
bit-identical to decoding everything in order and doing the same cut and conversion.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vidlang.data.container import VideoInfo, count_frames, iterate_frames, map_file, pick_frames
from vidlang.data.crops import CropBox
from vidlang.data.failures import BrokenVideo
from vidlang.data.mp4 import Mp4Index, NotIndexed, read_index
from vidlang.data.pixels import Cutter, quarter_turns

__all__ = ["BrokenVideo", "VideoInfo", "decode", "iterate_frames", "probe"]

CACHED_DECODERS = 8


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
    mp4: bytes | memoryview, frames: np.ndarray, crop: CropBox, size: tuple[int, int], out: np.ndarray | None = None
) -> np.ndarray:
    """The frames of the given ranks, cut by `crop` and scaled to `size`: uint8 [T, H, W, 3].

    Ranks come in any order and may repeat. An H.264 MP4 is read at random; anything else that PyAV reads is decoded
    from its start, with a warning.
    """
    ranks_T = np.asarray(frames)
    if ranks_T.ndim != 1 or (ranks_T.size and ranks_T.dtype.kind not in "iu"):
        raise ValueError(f"frames must be a list of integers, got {ranks_T.dtype} of shape {list(ranks_T.shape)}")
    shape = (len(ranks_T), *size, 3)
    video_THWC = np.empty(shape, np.uint8) if out is None else out
    if video_THWC.shape != shape or video_THWC.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {list(shape)}, got {video_THWC.dtype} {list(video_THWC.shape)}")
    places: dict[int, list[int]] = {}
    for place, rank in enumerate(ranks_T.tolist()):
        places.setdefault(rank, []).append(place)
    data = memoryview(mp4)
    try:
        index = read_index(data)
    except NotIndexed as reason:
        warnings.warn(f"decoding a video from its start, because {reason}; precut it to make this fast", stacklevel=2)
        cutter = Cutter()
        for rank, frame in pick_frames(mp4, set(places)):
            cutter.paste(frame, quarter_turns(frame), crop, video_THWC, places[rank])
        return video_THWC
    if places and not (0 <= min(places) and max(places) < len(index.sizes)):
        raise ValueError(f"frames {min(places)}..{max(places)} asked of a video of {len(index.sizes)} frames")
    decoder = _borrow(index.configuration)
    for rank, frame in _planned_frames(data, index, np.unique(ranks_T.astype(np.int64)), decoder):
        if (frame.width, frame.height) != (index.width, index.height):
            raise BrokenVideo(
                f"its index says {index.width} x {index.height} pixels, its frames have {frame.width} x {frame.height}"
            )
        decoder.cutter.paste(frame, index.rotation, crop, video_THWC, places[rank])
    # Only here, so that a decoder that met damage is not used again.
    _give_back(index.configuration, decoder)
    return video_THWC


class _Decoder:
    """One H.264 decoder with its cutter; opening them costs more than decoding a few frames."""

    def __init__(self, configuration: bytes) -> None:
        self.context = av.CodecContext.create("h264", "r")
        self.context.extradata = configuration
        # One thread: more cost a fifth more work for little less delay, and there are other workers.
        self.context.thread_type, self.context.thread_count = "NONE", 1
        # By default libavcodec hides damage behind made-up pixels.
        self.context.options = {"err_detect": "explode"}
        self.cutter = Cutter()


_idle: list[tuple[bytes, _Decoder]] = []
_idle_lock = threading.Lock()


def _borrow(configuration: bytes) -> _Decoder:
    """An idle decoder of this configuration, or a new one; each is used by one thread at a time."""
    with _idle_lock:
        for place in reversed(range(len(_idle))):
            if _idle[place][0] == configuration:
                return _idle.pop(place)[1]
    return _Decoder(configuration)


def _give_back(configuration: bytes, decoder: _Decoder) -> None:
    with _idle_lock:
        _idle.append((configuration, decoder))
        del _idle[:-CACHED_DECODERS]


def _planned_frames(
    data: memoryview, index: Mp4Index, ranks: np.ndarray, decoder: _Decoder
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of these ranks, each once, decoding as little as possible."""
    for start, targets in _plan(index, ranks):
        missing = set(index.ranks[sorted(targets)].tolist())
        try:
            for packet in _packets(data, index, start, targets):
                for frame in decoder.context.decode(packet):
                    if frame.pts is None or frame.pts not in missing:
                        continue
                    if frame.is_corrupt:
                        raise BrokenVideo(f"frame {frame.pts} is damaged")
                    missing.remove(frame.pts)
                    yield frame.pts, frame
        except av.FFmpegError as error:
            raise BrokenVideo(
                f"frame data is damaged near frame {min(missing, default=0)}: {error.strerror}"
            ) from error
        decoder.context.flush_buffers()
        if missing:
            raise BrokenVideo(f"frame {min(missing)} is in the index but does not decode: the data is damaged")


def _plan(index: Mp4Index, ranks: np.ndarray) -> list[tuple[int, set[int]]]:
    """The samples of these ranks, grouped by the sync sample that decoding them starts at."""
    # Open GOPs start with a keyframe that is not the first shown; frames around it refer to the GOP before. Decoding
    # starts where as many frames are shown before as are stored before.
    starts = index.keys[index.ranks[index.keys] == index.keys]
    groups: dict[int, set[int]] = {}
    for sample in np.sort(index.samples[ranks]).tolist():
        place = int(np.searchsorted(starts, sample, side="right")) - 1
        groups.setdefault(int(starts[place]) if place >= 0 else 0, set()).add(sample)
    return sorted(groups.items())


def _packets(data: memoryview, index: Mp4Index, start: int, targets: set[int]) -> Iterator[av.Packet | None]:
    """The samples from a keyframe to its last target that are targets or that others refer to, then None: no more."""
    for sample in range(start, max(targets) + 1):
        offset, size = int(index.offsets[sample]), int(index.sizes[sample])
        coded = data[offset : offset + size]
        if sample in targets or _is_reference(coded, index.length_size):
            packet = av.Packet(bytes(coded))
            packet.pts = int(index.ranks[sample])
            packet.is_keyframe = sample == start
            yield packet
    yield None


def _is_reference(coded: memoryview, length_size: int) -> bool:
    """Whether other frames may refer to this one: nal_ref_idc of its first slice."""
    place = 0
    while place + length_size < len(coded):
        length = int.from_bytes(coded[place : place + length_size], "big")
        header = coded[place + length_size]
        if header & 31 in (1, 2, 5):
            return header & 0x60 != 0
        place += length_size + length
    return True
