"""From one decoded frame to a cut, scaled, upright piece of a clip, converting only the pixels inside the cut.

A clip is RGB ("rgb", uint8 [T, H, W, 3]) or planar 4:2:0 ("yuv420", uint8 [T, H * 3 / 2, W]: H rows of luma, then the
two chroma planes of H/2 x W/2 as rows of W). The second is half the bytes and is turned into RGB on the device; it is
always BT.709 in limited range, its chroma samples lie where the source has them: between the pixels in our own chunks.
"""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from vidlang.data.crops import CropBox
from vidlang.data.failures import BrokenVideo

# Without these, sws darkens by two levels and halves the colour resolution.
ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
# As a plain number: building the flags anew for each frame costs more than it should.
SCALER = int(Interpolation.BILINEAR | ACCURATE)
# The largest frame that is decoded (8K is half of it): a damaged header can ask for gigabytes.
MOST_PIXELS = 8192 * 8192
# sws writes three planes three times as fast as interleaved RGB, with the same rounding: where red, green, blue are.
RED_GREEN_BLUE = (2, 0, 1)
PIXELS = ("rgb", "yuv420")


def clip_shape(count: int, size: tuple[int, int], pixels: str) -> tuple[int, ...]:
    """The shape of a clip of `count` frames of `size` (height, width)."""
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"a frame needs a height and a width of 1 or more, got {height} x {width}")
    if pixels == "rgb":
        return count, height, width, 3
    if pixels != "yuv420":
        raise ValueError(f"unknown pixels {pixels!r}; there are: {', '.join(PIXELS)}")
    if height % 4 or width % 2:
        raise ValueError(f"yuv420 needs a height divisible by 4 and an even width, got {height} x {width}")
    return count, height * 3 // 2, width


class Cutter:
    """Cuts, converts, scales and turns upright the frames of one stream; not for two threads at once."""

    def __init__(self) -> None:
        self._scaler, self._encoder = VideoReformatter(), VideoReformatter()
        self._window: _Window | None = None

    def paste(
        self, frame: av.VideoFrame, turns: int, crop: CropBox, clip: np.ndarray, places: list[int], pixels: str
    ) -> None:
        """Writes the crop of one decoded frame to its places in the clip."""
        upright = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        crop.check_inside(*upright)
        piece = self._cut(frame, _stored_box(crop, turns, *upright))
        first = clip[places[0]]
        if pixels == "rgb":
            height, width, _ = first.shape
            planes, targets = _rgb_planes(piece, turns, height, width, self._scaler, SCALER), _channels(first)
        else:
            planes, targets = self._yuv_planes(piece, turns, *first.shape), _planes_420(first)
        for plane_HW, target in zip(planes, targets, strict=True):
            target[...] = (plane_HW[:, ::-1] if crop.flip else plane_HW).reshape(target.shape)
        for place in places[1:]:
            clip[place] = first

    def _yuv_planes(self, piece: av.VideoFrame, turns: int, rows: int, width: int) -> list[np.ndarray]:
        height = rows // 3 * 2
        if turns % 2:
            height, width = width, height
        if piece.colorspace != Colorspace.ITU709:
            # sws would go from one matrix to another by way of coarse RGB.
            piece = self._scaler.reformat(
                piece, width=width, height=height, format="gbrp", interpolation=SCALER, threads=1
            )
        small = self._encoder.reformat(
            piece,
            width=width,
            height=height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=SCALER,
            threads=1,
        )
        return [_turned(plane, turns) for plane in small.planes]

    def _cut(self, frame: av.VideoFrame, box: tuple[int, int, int, int]) -> av.VideoFrame:
        if box[2:] == (frame.height, frame.width):
            return frame
        if self._window is None or not self._window.fits(frame):
            self._window = _Window(frame)
        return self._window.cut(frame, box)


class _Window:
    """A movable window on frames of one size and format, as libavfilter's crop: it copies nothing.

    It also hands on where a frame's chroma samples lie, which PyAV can neither tell nor set; without it colours would
    shift by half a pixel.
    """

    def __init__(self, frame: av.VideoFrame) -> None:
        self._of = frame.width, frame.height, frame.format.name
        graph = av.filter.Graph()
        graph.threads = 1  # else it starts one for each core
        self._source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        self._crop, self._sink = graph.add("crop", "exact=1"), graph.add("buffersink")
        graph.link_nodes(self._source, self._crop, self._sink).configure()
        self._graph = graph  # its parts do not keep it alive
        self._box: tuple[int, ...] = (0, 0, frame.height, frame.width)

    def fits(self, frame: av.VideoFrame) -> bool:
        return self._of == (frame.width, frame.height, frame.format.name)

    def cut(self, frame: av.VideoFrame, box: tuple[int, int, int, int]) -> av.VideoFrame:
        """The part of the frame in the box (top, left, height, width)."""
        if box != self._box:
            for name, value in zip(("y", "x", "h", "w"), box, strict=True):
                self._crop.process_command(name, str(value), 0)
            self._box = box
        self._source.push(frame)
        piece = self._sink.pull()
        assert isinstance(piece, av.VideoFrame)
        return piece


def to_rgb(
    frame: av.VideoFrame, turns: int, height: int, width: int, reformatter: VideoReformatter, scaler: int
) -> np.ndarray:
    """The frame as a new array of RGB of the given upright size."""
    rgb_HWC = np.empty((height, width, 3), np.uint8)
    for number, plane_HW in enumerate(_rgb_planes(frame, turns, height, width, reformatter, scaler)):
        rgb_HWC[..., number] = plane_HW
    return rgb_HWC


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns counter-clockwise that bring the frame upright, as its file asks."""
    if frame.rotation % 90:
        turned = f"its picture is turned by {frame.rotation} degrees, which is no multiple of 90"
        raise BrokenVideo(turned, "unsupported")
    return frame.rotation // 90 % 4


def _rgb_planes(
    frame: av.VideoFrame, turns: int, height: int, width: int, reformatter: VideoReformatter, scaler: int
) -> list[np.ndarray]:
    """Red, green and blue of the given upright size."""
    if turns % 2:
        height, width = width, height
    small = reformatter.reformat(frame, width=width, height=height, format="gbrp", interpolation=scaler, threads=1)
    planes = small.planes
    return [_turned(planes[number], turns) for number in RED_GREEN_BLUE]


def _channels(rgb_HWC: np.ndarray) -> tuple[np.ndarray, ...]:
    return rgb_HWC[..., 0], rgb_HWC[..., 1], rgb_HWC[..., 2]


def _planes_420(yuv_XW: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of the three planes of one 4:2:0 frame; those of chroma as [H / 4, 2, W / 2], two rows in one."""
    rows, width = yuv_XW.shape
    luma, blue = rows // 3 * 2, rows // 6 * 5
    halves = (rows // 6, 2, width // 2)
    return yuv_XW[:luma], yuv_XW[luma:blue].reshape(halves), yuv_XW[blue:].reshape(halves)


def _stored_box(crop: CropBox, turns: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of the upright picture in the frame as stored."""
    bottom, right = height - crop.top - crop.height, width - crop.left - crop.width
    top, left = ((crop.top, crop.left), (crop.left, bottom), (bottom, right), (right, crop.top))[turns]
    box_height, box_width = (crop.width, crop.height) if turns % 2 else (crop.height, crop.width)
    return top // 2 * 2, left // 2 * 2, box_height, box_width


def _turned(plane: VideoPlane, turns: int) -> np.ndarray:
    """The picture in a plane, turned upright; no copy."""
    plane_HW = np.ndarray((plane.height, plane.width), np.uint8, memoryview(plane), 0, (plane.line_size, 1))
    return np.rot90(plane_HW, turns) if turns else plane_HW
