"""The ways of getting a few cropped frames out of a chunk that benchmarks/decode.py compares.

Each takes (mp4, frames_T, crop, size) and gives uint8 [T, H, W, 3]. Libraries that cannot crop by a given box before
they convert give whole frames, which are then cut and scaled by OpenCV where it is installed (the fastest way), else by
sws. Each library runs with one thread and the settings that were the fastest for it.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidlang.data import decode as decoding
from vidlang.data.crops import CropBox
from vidlang.data.mp4 import read_index

Side = Callable[[bytes, np.ndarray, CropBox, tuple[int, int]], np.ndarray]
FPS = 30
_cv2: Any = None


def available() -> tuple[dict[str, Side], list[str]]:
    """The sides that can run here, and a line for each that cannot."""
    global _cv2
    sides: dict[str, Side] = {"ours": decoding.decode, "all": decode_all, "seek": decode_after_seek}
    missing: list[str] = []
    found = {name: _optional(name, missing) for name in ("cv2", "decord", "torchcodec")}
    _cv2 = found["cv2"]
    if found["decord"] is not None:
        sides["decord"] = decode_by_decord
    if found["torchcodec"] is not None:
        sides |= {"torchcodec": decode_by_torchcodec, "torchcodec approximate": decode_by_torchcodec_approximate}
    return sides, missing


def _optional(name: str, missing: list[str]) -> Any:
    try:
        return importlib.import_module(f"{name}.decoders" if name == "torchcodec" else name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["?"])[0]
        missing.append(f"{name} is left out: {reason}")
        return None


class Bound:
    """The packets that ours decodes, decoded and nothing else."""

    def __init__(self) -> None:
        self._decoders: dict[bytes, Any] = {}

    def prepare(self, mp4: bytes, frames_T: np.ndarray) -> Callable[[], None]:
        """What is to be timed."""
        index = read_index(mp4)
        groups = [
            list(decoding._packets(memoryview(mp4), index, start, targets))
            for start, targets in decoding._plan(index, sorted(set(frames_T.tolist())))
        ]
        key = index.configuration, index.width, index.height
        context = self._decoders.setdefault(index.configuration, decoding._Decoder(key).context)

        def run() -> None:
            for packets in groups:
                for packet in packets:
                    context.decode(packet)
                context.flush_buffers()

        return run


def decode_all(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    """Every frame of the chunk to RGB, as a loop over the container gives them, then the wanted ones are cut."""
    wanted, found = set(frames_T.tolist()), {}
    with av.open(io.BytesIO(mp4), "r") as container:
        container.streams.video[0].thread_type = "NONE"
        for rank, frame in enumerate(container.decode(video=0)):
            rgb_HWC = frame.to_ndarray(format="rgb24")
            if rank in wanted:
                found[rank] = cut(rgb_HWC, crop, size)
    return np.stack([found[frame] for frame in frames_T.tolist()])


def decode_after_seek(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    """A seek for each wanted frame that lies past a keyframe ahead, wanted frames to RGB, then cut."""
    found: dict[int, np.ndarray] = {}
    last = -FPS
    with av.open(io.BytesIO(mp4), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = 1 / (FPS * (stream.time_base or Fraction(1)))
        for wanted in sorted(set(frames_T.tolist())):
            if wanted - last > FPS // 2:
                container.seek(int(wanted * ticks), stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                last = round((frame.pts or 0) / ticks)
                if last >= wanted:
                    found[wanted] = cut(frame.to_ndarray(format="rgb24"), crop, size)
                    break
    return np.stack([found[frame] for frame in frames_T.tolist()])


def decode_by_decord(mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    import decord

    reader = decord.VideoReader(io.BytesIO(mp4), ctx=decord.cpu(0), num_threads=1)
    return np.stack([cut(rgb_HWC, crop, size) for rgb_HWC in reader.get_batch(frames_T.tolist()).asnumpy()])


def decode_by_torchcodec(
    mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int], seek_mode: str = "exact"
) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
    frames_THWC = decoder.get_frames_at(frames_T.tolist()).data.numpy()
    return np.stack([cut(rgb_HWC, crop, size) for rgb_HWC in frames_THWC])


def decode_by_torchcodec_approximate(
    mp4: bytes, frames_T: np.ndarray, crop: CropBox, size: tuple[int, int]
) -> np.ndarray:
    return decode_by_torchcodec(mp4, frames_T, crop, size, "approximate")


def cut(rgb_HWC: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    """The crop of a whole frame, scaled the cheap way."""
    piece_HWC = rgb_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if _cv2 is not None:
        return _cv2.resize(piece_HWC, size[::-1], interpolation=_cv2.INTER_LINEAR)
    piece = av.VideoFrame.from_ndarray(np.ascontiguousarray(piece_HWC), format="rgb24")
    return VideoReformatter().reformat(piece, width=size[1], height=size[0], threads=1).to_ndarray()
