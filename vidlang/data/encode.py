"""Frames in, one small H.264 MP4 out, laid out so that a few frames of it are cheap to decode.

A training clip needs a handful of frames at random places, and what that costs is the number of frames that must be
decoded to reach them. Hence short closed GOPs, B-frames that nothing refers to (a reader may leave them out), and no
filter or entropy coder that is slow to undo.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from vidlang.data.mp4 import boxes
from vidlang.data.pixels import ACCURATE


@dataclass(frozen=True)
class EncodeSettings:
    """How frames are encoded; the defaults are the house's chunk format (about 0.9 Mb/s at short side 288).

    `keyint` gives the GOP in frames; without it a GOP lasts `gop_seconds` (15 frames at 30 fps). Up to `b_frames` in a
    row are B-frames, as x264 sees fit, or always that many with `fixed_b`.
    """

    crf: float = 21.5
    preset: str = "medium"
    gop_seconds: float = 0.5
    keyint: int | None = None
    b_frames: int = 3
    fixed_b: bool = False
    fast_decode: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must lie in 0..51 (lower is better and bigger), got {self.crf}")
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; x264 has {', '.join(PRESETS)}")
        if not self.gop_seconds > 0 or (self.keyint is not None and self.keyint < 1):
            raise ValueError(f"a GOP needs a length, got gop_seconds={self.gop_seconds} and keyint={self.keyint}")
        if not 0 <= self.b_frames <= 16:
            raise ValueError(f"b_frames must lie in 0..16, got {self.b_frames}")

    def gop(self, fps: Fraction) -> int:
        """Frames from one keyframe to the next."""
        return self.keyint if self.keyint is not None else max(1, round(fps * Fraction(self.gop_seconds)))

    def options(self, fps: Fraction) -> dict[str, str]:
        """The options of x264."""
        gop = self.gop(fps)
        # Scene cuts would break the even grid of keyframes, open GOPs and B-pyramids cost frames to decode.
        grid = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:b-pyramid=none:{ALWAYS}"
        grid += ":b-adapt=0" if self.fixed_b else ""
        options = {"preset": self.preset, "crf": str(self.crf), "bf": str(self.b_frames), "x264-params": grid}
        return {**options, "tune": "fastdecode"} if self.fast_decode else options


# sws puts chroma samples between the pixels (chromaloc=1); left untold, decoders would take them to lie on the left
# ones. One thread, because the bytes depend on how many there are. No code for this processor alone: with that of
# x264's rate control, the bytes depend on what the process has encoded before. It costs no time.
ALWAYS = "chromaloc=1:threads=1:cpu-independent=1"
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
# Ways to encode a store, each at no lower SSIM than x264 by default. In bytes and in clips/s (four frames of a short
# clip) of x264's default, as benchmarks.decode measures them on real videos:
ENCODINGS = {
    "small": EncodeSettings(crf=23, gop_seconds=1.0, fast_decode=False),  # 1.2 x the bytes, 2.9 x the speed
    "balanced": EncodeSettings(),  # 1.8 x the bytes, 5.7 x the speed
    "fast": EncodeSettings(crf=20, b_frames=7, fixed_b=True),  # 2.2 x the bytes, 6.1 x the speed
}


def encode_mp4(frames: Iterable[np.ndarray], *, fps: int | Fraction, settings: EncodeSettings | None = None) -> bytes:
    """Encodes uint8 RGB frames of one even size; frame k is shown at k / fps seconds.

    The same frames give the same bytes with the same build of x264.
    """
    settings = EncodeSettings() if settings is None else settings
    if fps <= 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    return encode_x264(frames, fps=fps, options=settings.options(Fraction(fps)))


def encode_x264(frames: Iterable[np.ndarray], *, fps: int | Fraction, options: Mapping[str, str]) -> bytes:
    """As encode_mp4, with any options of x264: what the settings are measured against."""
    fps = Fraction(fps)
    checked = _checked(frames)
    first = next(checked, None)
    if first is None:
        raise ValueError("cannot encode a video of no frames")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        context = stream.codec_context
        context.thread_count, context.time_base = 1, 1 / fps
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter = VideoReformatter()
        for number, picture in enumerate(itertools.chain([first], checked)):
            frame = to_yuv(picture, reformatter)
            frame.pts, frame.time_base = number, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return _index_first(file.getvalue())


def to_yuv(rgb_HWC: np.ndarray, reformatter: VideoReformatter) -> av.VideoFrame:
    """The 4:2:0 frame of BT.709 that an RGB picture is encoded as."""
    return reformatter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24"),
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | ACCURATE,
        threads=1,
    )


def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, each checked to be an even RGB picture of the first one's size."""
    shape: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame {number} must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if shape is None and (frame.shape[0] % 2 or frame.shape[1] % 2 or min(frame.shape) < 2):
            raise ValueError(f"height and width must be even, got {frame.shape[0]} x {frame.shape[1]}")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"frame {number} is {list(frame.shape)}, the frames before it are {list(shape)}")
        yield frame


def _index_first(mp4: bytes) -> bytes:
    """The same MP4 with its index (moov) before its frames (mdat), so that players start while it loads."""
    data = memoryview(mp4)
    top = {kind: (start - 8, end) for kind, start, end in boxes(data, 0, len(data))}
    start, end = top[b"moov"]
    moov, place = bytearray(data[start:end]), top[b"mdat"][0]
    view, inner = memoryview(moov), (8, len(moov))
    for wanted in (b"trak", b"mdia", b"minf", b"stbl", b"stco"):
        inner = next((first, last) for kind, first, last in boxes(view, *inner) if kind == wanted)
    count = struct.unpack_from(">I", view, inner[0] + 4)[0]
    offsets = np.frombuffer(moov, ">u4", count, inner[0] + 8)
    offsets += len(moov)
    return b"".join((data[:place], moov, data[place:start], data[end:]))
