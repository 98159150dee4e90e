"""A store of videos of which any few frames can be read quickly: one interface over several kinds of folder.

    STORE/store.json            format version, kind, settings, content hash, shards
    STORE/index.arrow           one row a video: where its chunks are, frame rate and size, a checksum for each chunk
    STORE/video_chunks-*        the chunks: records of a TFDS dataset in ArrayRecord files (dataset_info.json, ...)

That is the kind "records", which precutting makes. The kinds "chunk_files", "videos" and "images" have the same two
files beside a folder of somebody else's that was adopted and stays as it is (stores/adopt.py).

store.json is written last, so a folder that opens is complete. Frame g of a video is shown at g / fps seconds,
whichever chunk holds it; whole videos have a time for each frame. Every read is checked against the checksum, because
most damage to H.264 decodes into wrong pixels without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vidlang.core.config import did_you_mean
from vidlang.data.crops import CropBox
from vidlang.data.decode import decode
from vidlang.data.failures import BrokenVideo, StoreAway
from vidlang.data.pixels import clip_shape
from vidlang.data.stores.header import check_expected, read_header
from vidlang.data.stores.index import is_intact, load_index
from vidlang.data.stores.names import Names
from vidlang.data.stores.remote import Folder, open_folder

if TYPE_CHECKING:
    from vidlang.data.stores.check import Problem

__all__ = ["ChunkStore", "StoreAway", "VideoRow", "open_store"]

NUMBERS = ("fps", "width", "height", "frames", "duration")


@dataclass(frozen=True)
class VideoRow:
    """What a store knows of one video."""

    fps: float
    width: int
    height: int
    frames: int
    duration: float


def open_store(path: str | Path, *, expect: Mapping[str, Any] | None = None) -> ChunkStore:
    """The store in a folder, local or gs://, s3://, ...; cheap, its content is opened when read.

    `expect` holds what the reader relies on: `kind`, `content_hash`, `format_version`, or any of the settings that the
    store was made with, such as `fps`. A store that differs is refused.
    """
    folder = open_folder(path)
    header = read_header(folder)
    check_expected(header, expect or {}, str(folder))
    # These are built on this file.
    from vidlang.data.stores.files import ChunkFileStore, VideoStore
    from vidlang.data.stores.images import image_store
    from vidlang.data.stores.records import RecordStore

    kinds = {"records": RecordStore, "chunk_files": ChunkFileStore, "videos": VideoStore, "images": image_store}
    return kinds[header["kind"]](folder, header)


class ChunkStore:
    """Reads chunks and clips; pickles by its path, and one object serves many threads."""

    def __init__(self, folder: Folder, header: Mapping[str, Any]) -> None:
        self.path, self.folder, self.header = folder.path, folder, header
        self.kind: str = header["kind"]
        self.settings: dict[str, Any] = header["settings"]
        self.content_hash: str = header["content_hash"]
        index = load_index(folder, header)
        self.columns: dict[str, pa.ChunkedArray] = {name: index.column(name) for name in index.column_names}
        self.videos = Names(self.columns["video"])

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.folder.remote, self.content_hash)

    def __len__(self) -> int:
        return len(self.videos)

    def __contains__(self, video: object) -> bool:
        return video in self.videos

    def __repr__(self) -> str:
        hours = (pc.sum(self.columns["duration"]).as_py() or 0) / 3600
        return f"ChunkStore({str(self.path)!r}: {len(self)} videos, {hours:.1f} hours)"

    def contains_many(self, videos: Iterable[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Which of these names are videos of the store: bool, all looked up at once."""
        return self.videos.find_many(videos) >= 0

    def info(self, video: str) -> VideoRow:
        """Frame rate, size and length of a video."""
        return self._info(self._row(video))

    def infos(self) -> dict[str, np.ndarray]:
        """Frame rates, sizes and lengths of all videos, in the order of `videos`."""
        return {name: self.columns[name].to_numpy() for name in NUMBERS}

    def chunk_frames(self, video: str) -> np.ndarray:
        """How many frames each chunk of a video holds."""
        return self.cell("chunk_frames", self._row(video)).values.to_numpy()

    def read(self, video: str, chunk: int) -> bytes:
        """One chunk as it was written, checked against its checksum."""
        row = self._row(video)
        chunks = self.cell("chunks", row).as_py()
        if not 0 <= chunk < chunks:
            raise ValueError(f"chunk {chunk} asked of video {video!r}, which has chunks 0..{chunks - 1}")
        return bytes(self.read_chunk(row, chunk))

    def decode(
        self,
        video: str,
        times_T: np.ndarray,
        crop: CropBox,
        size: tuple[int, int],
        *,
        pixels: str = "rgb",
        out: np.ndarray | None = None,
        deadline: float | None = None,
    ) -> np.ndarray:
        """The frames shown at these seconds, cut by one crop and scaled: uint8 [T, H, W, 3], or I420 as decode says.

        A time past the end shows the last frame, as annotations run over by a little; a clip that lies wholly past
        the end is refused.
        """
        row = self._row(video)
        info = self._info(row)
        times_T = np.asarray(times_T, np.float64)
        if times_T.ndim != 1 or not (np.isfinite(times_T).all() and (times_T >= 0).all()):
            raise ValueError(f"times must be a list of seconds from 0 on, got {times_T}")
        crop.check_inside(info.height, info.width)
        shape = clip_shape(len(times_T), size, pixels)
        clip = np.empty(shape, np.uint8) if out is None else out
        if clip.shape != shape or clip.dtype != np.uint8:
            raise ValueError(f"out must be uint8 {list(shape)}, got {clip.dtype} {list(clip.shape)}")
        if times_T.size and times_T.min() >= info.duration:
            raise BrokenVideo(
                f"video {video!r} ends at {info.duration:.2f} s, the clip starts at {times_T.min():.2f} s", "beyond"
            )
        frames_T = np.clip(self._frames_at(row, times_T, info), 0, info.frames - 1)
        ends = np.cumsum(self.cell("chunk_frames", row).values.to_numpy())
        chunks_T = np.searchsorted(ends, frames_T, side="right")
        for chunk in np.unique(chunks_T).tolist():
            here_T = chunks_T == chunk
            ranks = frames_T[here_T] - (ends[chunk - 1] if chunk else 0)
            # Most clips lie in one chunk and are written where they belong at once.
            target = clip if here_T.all() else np.empty((len(ranks), *clip.shape[1:]), np.uint8)
            self._decode_part(row, chunk, (ranks, crop, size, target), pixels, deadline)
            if target is not clip:
                clip[here_T] = target
        return clip

    def _decode_part(self, row: int, chunk: int, asked: tuple[Any, ...], pixels: str, deadline: float | None) -> None:
        content = self.read_chunk(row, chunk)
        try:
            self.decode_chunk(content, *asked, pixels=pixels, deadline=deadline)
        except BrokenVideo as error:
            raise BrokenVideo(f"{self._where(row, chunk)}: {error}", error.kind) from error
        except ValueError as error:
            # What was asked for was held against the index before.
            raise BrokenVideo(f"{self._where(row, chunk)} is not as the index says: {error}") from error

    def check(self) -> None:
        """Reads the last chunk of the store; damage elsewhere shows when it is read, or is found by `problems`."""
        self.read_chunk(len(self) - 1, self.cell("chunks", len(self) - 1).as_py() - 1)

    def problems(self, progress: Any = None, workers: int = 1) -> Iterator[Problem]:
        """Everything that is wrong with the store, found by reading, comparing and decoding all of it."""
        from vidlang.data.stores.check import find_problems

        return find_problems(self, progress, workers)

    def cell(self, column: str, row: int) -> pa.Scalar:
        """What the index says of a video."""
        return self.columns[column][row]

    def _content(self, row: int, chunk: int) -> bytes | memoryview:
        """The bytes of a chunk as they are now; RecordError or OSError when there are none."""
        raise NotImplementedError

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
        """Writes frames of one chunk, by their places in it, to an array."""
        decode(content, ranks, crop, size, clip, pixels=pixels, deadline=deadline)

    def _forget(self, row: int, chunk: int) -> None:
        """Lets go of what is open of a chunk."""

    def _frames_at(self, row: int, times_T: np.ndarray, info: VideoRow) -> np.ndarray:
        """The number of the frame shown at each time."""
        # The small number is for times that are frame times themselves, rounded down by a last bit.
        return np.floor(np.minimum(times_T, info.duration) * info.fps + 1e-6).astype(np.int64)

    def read_chunk(self, row: int, chunk: int) -> bytes | memoryview:
        """As `read`, by the video's place among `videos` and perhaps without a copy."""
        for attempt in range(2):
            try:
                content = self._content(row, chunk)
                if self._intact(content, row, chunk):
                    return content
                reason: Exception | None = None
            except (BrokenVideo, OSError) as error:
                reason = error
            # A handle goes stale when a disk is mounted anew: once more, with a new one.
            if attempt == 0:
                self._forget(row, chunk)
        self.require_present()
        where = self._where(row, chunk)
        if reason is None:
            message, kind = f"{where} is damaged: its checksum is not the one it was written with", "damaged"
        elif isinstance(reason, BrokenVideo):
            message, kind = f"{where} cannot be read: {reason}", reason.kind
        else:
            gone = isinstance(reason, FileNotFoundError | NotADirectoryError)
            message = f"{where} is missing" if gone else f"{where} cannot be read: {reason}"
            kind = "missing" if gone else "unreadable"
        raise BrokenVideo(message, kind) from reason

    def _intact(self, content: bytes | memoryview, row: int, chunk: int) -> bool:
        return is_intact(content, self.cell("checksum", row)[chunk].as_py())

    def require_present(self) -> None:
        """Raises StoreAway where the store as a whole cannot be reached."""
        try:
            header = read_header(self.folder)
        except (OSError, ValueError) as error:
            raise StoreAway(f"the chunk store {str(self.path)!r} cannot be reached: {error}") from error
        if header["content_hash"] != self.content_hash:
            raise ValueError(
                f"the chunk store {str(self.path)!r} was replaced by another while it was read; open it again"
            )

    def _where(self, row: int, chunk: int) -> str:
        return f"chunk {chunk} of video {self.videos[row]!r} in {str(self.path)!r}"

    def _info(self, row: int) -> VideoRow:
        return VideoRow(*(self.cell(name, row).as_py() for name in NUMBERS))

    def _row(self, video: str) -> int:
        row = self.videos.find(video) if isinstance(video, str) else -1
        if row < 0:
            hint = did_you_mean(str(video), list(self.videos)) if len(self) <= 10_000 else ""
            raise ValueError(
                f"there is no video {video!r}{hint} among the {len(self)} of the chunk store {str(self.path)!r}"
            )
        return row


def _reopen(path: str, remote: bool, content_hash: str) -> ChunkStore:
    return open_store(path if remote else Path(path), expect={"content_hash": content_hash})
