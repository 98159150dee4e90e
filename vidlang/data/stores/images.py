"""Images as videos of one frame, shown for one second: from a folder of files, or from a TFDS dataset.

JPEG, PNG and WebP are decoded by the same code as videos. Grey and palette images become RGB, 16 bits become 8, what
transparency hides is shown. The EXIF orientation is respected; refused when adopted, by name, are mirrored orientations
(the decoder cannot tell them from turned ones), animations and CMYK.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Mapping
from typing import Any

import av
import numpy as np

from vidlang.data.chunks import ChunkStore
from vidlang.data.crops import CropBox
from vidlang.data.failures import BrokenVideo, check_deadline
from vidlang.data.pixels import MOST_PIXELS, Cutter, quarter_turns
from vidlang.data.stores.files import FileStore, require_root, root_folder
from vidlang.data.stores.records import RecordStore
from vidlang.data.stores.remote import Folder

FORMATS = "jpeg_pipe,png_pipe,apng,webp_pipe"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ORIENTATION = 0x112
MIRRORED = (2, 4, 5, 7)
EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF....)(II\*\0|MM\0\*)", re.DOTALL)


class _Images(ChunkStore):
    """What both kinds of image store share: how one is decoded."""

    def decode_chunk(
        self,
        content: bytes | memoryview,
        ranks: np.ndarray,
        crop: CropBox,
        size: tuple[int, int],
        clip: np.ndarray,
        *,
        pixels: str,
        deadline: float | None,
    ) -> None:
        """One image, as often as it was asked for."""
        check_deadline(deadline)
        (frame,) = _frames(content, 1)
        Cutter().paste(frame, quarter_turns(frame), crop, clip, list(range(len(ranks))), pixels)


class ImageFileStore(_Images, FileStore):
    """A folder of image files; the name of an image is its path from that folder."""


class ImageRecordStore(_Images, RecordStore):
    """The images of a split of a TFDS dataset in ArrayRecord files; the name of an image is its record's number."""

    feature = "image"

    def __init__(self, folder: Folder, header: Mapping[str, Any]) -> None:
        super().__init__(folder, header)
        self.root = root_folder(folder, header)

    def records_fit(self) -> bool:
        """Whether the shards hold every record that the index names; those that were refused it does not name."""
        first = self.columns["first_record"].to_numpy()
        return bool((np.diff(first) > 0).all() and first[0] >= 0 and first[-1] < sum(self._shards.values()))

    def require_present(self) -> None:
        """Raises StoreAway where the store, or the folder of its files, cannot be reached."""
        super().require_present()
        require_root(self.root, str(self.path))

    def _shard_folder(self) -> Folder:
        return self.root


def image_store(folder: Folder, header: Mapping[str, Any]) -> ChunkStore:
    """The store of the kind "images" that a header speaks of."""
    return ImageRecordStore(folder, header) if header["shards"] else ImageFileStore(folder, header)


def image_size(content: bytes) -> tuple[int, int]:
    """Height and width of the upright image; BrokenVideo for one that is not read, by what is special about it."""
    if not content:
        raise BrokenVideo("the image is empty: 0 bytes", "empty")
    if exif_orientation(content) in MIRRORED:
        raise BrokenVideo("its EXIF orientation mirrors it; save it upright", "unsupported")
    if (content[:4] == b"RIFF" and b"ANIM" in content[12:64]) or content[:4] == b"GIF8":
        raise BrokenVideo("it is animated; adopt it as a video", "unsupported")
    frames = _frames(content, 2)
    if len(frames) > 1:
        raise BrokenVideo("it is animated; adopt it as a video", "unsupported")
    if frames[0].format.name.startswith(("gbrap", "cmyk")):
        raise BrokenVideo("its colours are CMYK; save it as RGB", "unsupported")
    shape = frames[0].height, frames[0].width
    if min(shape) < 2:
        raise BrokenVideo(f"it has {shape[1]} x {shape[0]} pixels, both sides must have 2 or more", "unsupported")
    return shape[::-1] if quarter_turns(frames[0]) % 2 else shape


def _frames(content: bytes | memoryview, most: int) -> list[av.VideoFrame]:
    """The first frames of an image: one, or of an animation as many as are asked for."""
    # The whitelists keep a hostile file from opening others.
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        with av.open(io.BytesIO(content), "r", options=options) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            # By default libavcodec hides damage behind made-up pixels.
            stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
            frames = list(itertools.islice(container.decode(stream), most))
    except (av.FFmpegError, IndexError) as error:
        raise BrokenVideo(f"it cannot be read as a JPEG, PNG or WebP image: {error}") from error
    if not frames or any(frame.is_corrupt for frame in frames):
        raise BrokenVideo("the image is damaged")
    return frames


def exif_orientation(content: bytes) -> int:
    """How the image is to be turned, 1 to 8; 1, upright, where it does not say."""
    found = EXIF.search(content)
    if not found:
        return 1
    start, order = found.start(1), "<" if found[1][:2] == b"II" else ">"
    try:
        place = start + struct.unpack_from(f"{order}I", content, start + 4)[0]
        for entry in range(struct.unpack_from(f"{order}H", content, place)[0]):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", content, place + 2 + 12 * entry)
            if (tag, kind, count) == (ORIENTATION, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
