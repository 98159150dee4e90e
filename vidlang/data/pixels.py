"""From one decoded frame to a cut, scaled, upright piece of RGB, converting only the pixels inside the cut."""

from __future__ import annotations

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from vidlang.data.crops import CropBox
from vidlang.data.failures import BrokenVideo

# Without these, sws darkens by two levels and halves the colour resolution.
ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
SCALER = Interpolation.BILINEAR | ACCURATE
# Pixel formats whose planes can be cut: (horizontal, vertical) shift of the chroma planes, bytes a pixel.
CUTTABLE = {
    "yuv420p": (1, 1, 1),
    "yuvj420p": (1, 1, 1),
    "yuv422p": (1, 0, 1),
    "yuvj422p": (1, 0, 1),
    "yuv444p": (0, 0, 1),
    "yuvj444p": (0, 0, 1),
    "yuv420p10le": (1, 1, 2),
    "yuv422p10le": (1, 0, 2),
    "yuv444p10le": (0, 0, 2),
    "rgb24": (0, 0, 3),
}


class Cutter:
    """Cuts, converts, scales and turns upright the frames of one stream; not for two threads at once."""

    def __init__(self) -> None:
        self._scaler, self._copier = VideoReformatter(), VideoReformatter()
        self._small: av.VideoFrame | None = None
        self._small_key: tuple[object, ...] = ()

    def paste(self, frame: av.VideoFrame, turns: int, crop: CropBox, out_THWC: np.ndarray, places: list[int]) -> None:
        """Writes the crop of one decoded frame to its places in the clip."""
        upright = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        crop.check_inside(*upright)
        piece = self._cut(frame, _stored_box(crop, turns, *upright))
        rgb_HWC = to_rgb(piece, turns, out_THWC.shape[1], out_THWC.shape[2], self._scaler, SCALER)
        if crop.flip:
            rgb_HWC = rgb_HWC[:, ::-1]
        for place in places:
            out_THWC[place] = rgb_HWC

    def _cut(self, frame: av.VideoFrame, box: tuple[int, int, int, int]) -> av.VideoFrame:
        """A frame that holds a copy of the box, plane by plane; valid until the next call."""
        if frame.format.name not in CUTTABLE:
            frame = self._copier.reformat(frame, format="rgb24", interpolation=SCALER, threads=1)
        top, left, height, width = box
        if (height, width) == (frame.height, frame.width):
            return frame
        small = self._like(frame, height, width)
        horizontal, vertical, depth = CUTTABLE[frame.format.name]
        for number, (source, target) in enumerate(zip(frame.planes, small.planes, strict=True)):
            down, across = (vertical, horizontal) if number else (0, 0)
            rows, row = height >> down, top >> down
            count, first = (width >> across) * depth, (left >> across) * depth
            _rows(target)[:rows, :count] = _rows(source)[row : row + rows, first : first + count]
        return small

    def _like(self, frame: av.VideoFrame, height: int, width: int) -> av.VideoFrame:
        """A smaller frame with the properties of `frame`, reused between frames of one clip.

        PyAV cannot set where a frame's chroma samples lie, and half a pixel of colour shift would follow. So the small
        frame is made from the big one, which hands its properties on; what is in it is overwritten.
        """
        key = (height, width, frame.format.name, frame.colorspace, frame.color_range)
        if self._small is None or self._small_key != key:
            nearest = Interpolation.POINT
            self._small = self._copier.reformat(frame, width=width, height=height, interpolation=nearest, threads=1)
            self._small_key = key
        return self._small


def to_rgb(
    frame: av.VideoFrame, turns: int, height: int, width: int, reformatter: VideoReformatter, scaler: int
) -> np.ndarray:
    """The frame as RGB of the given upright size; a view that the caller copies when it keeps it."""
    if turns % 2:
        height, width = width, height
    small = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=scaler, threads=1)
    return np.rot90(_rows(small.planes[0])[:, : width * 3].reshape(height, width, 3), turns)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns counter-clockwise that bring the frame upright, as its file asks."""
    if frame.rotation % 90:
        raise BrokenVideo(f"its picture is turned by {frame.rotation} degrees, which is no multiple of 90")
    return frame.rotation // 90 % 4


def _stored_box(crop: CropBox, turns: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of the upright picture in the frame as stored."""
    bottom, right = height - crop.top - crop.height, width - crop.left - crop.width
    top, left = ((crop.top, crop.left), (crop.left, bottom), (bottom, right), (right, crop.top))[turns]
    box_height, box_width = (crop.width, crop.height) if turns % 2 else (crop.height, crop.width)
    return top // 2 * 2, left // 2 * 2, box_height, box_width


def _rows(plane: VideoPlane) -> np.ndarray:
    """The bytes of a plane, padding included, without a copy."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
