"""A store of videos cut into short chunks, of which any few frames can be read quickly.

    STORE/store.json            format version, settings, content hash, shards
    STORE/index.arrow           one row a video: where its chunks are, frame rate and size, a checksum for each chunk
    STORE/video_chunks-*        the chunks: records of a TFDS dataset in ArrayRecord files (dataset_info.json, ...)

store.json is written last and the folder gets its name last, so a folder that opens is complete. Frame g of a video is
shown at g / fps seconds, whichever chunk holds it. Every read is checked against the checksum, because most damage to
H.264 decodes into wrong pixels without a word.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import did_you_mean
from vidlang.data.crops import CropBox
from vidlang.data.decode import decode
from vidlang.data.failures import BrokenVideo
from vidlang.data.records import RecordError, RecordReader
from vidlang.data.store_index import checksum, read_header, read_index


@dataclass(frozen=True)
class VideoRow:
    """What a store knows of one video."""

    fps: float
    width: int
    height: int
    frames: int
    duration: float


def open_store(path: str | Path) -> ChunkStore:
    """The store in a folder; cheap, shards are opened when read."""
    return ChunkStore(path)


class ChunkStore:
    """Reads chunks and clips; pickles by its path, and one object serves many threads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.settings: dict[str, Any] = header["settings"]
        self.content_hash: str = header["content_hash"]
        self._shards: dict[str, int] = header["shards"]
        self._index = read_index(self.path / "index.arrow", header, str(self.path))
        self.videos: list[str] = self._index.column("video").to_pylist()
        self._rows = {video: row for row, video in enumerate(self.videos)}
        numbers = ("first_record", "chunks", "fps", "width", "height", "frames", "duration")
        self._numbers = {name: self._index.column(name).to_numpy() for name in numbers}
        self._reader: RecordReader | None = None
        self._reader_process, self._reader_lock = 0, threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (str(self.path),)

    def __len__(self) -> int:
        return len(self.videos)

    def __contains__(self, video: object) -> bool:
        return video in self._rows

    def __repr__(self) -> str:
        hours = float(self._numbers["duration"].sum()) / 3600
        return f"ChunkStore({str(self.path)!r}: {len(self)} videos, {hours:.1f} hours)"

    def info(self, video: str) -> VideoRow:
        """Frame rate, size and length of a video."""
        row = self._row(video)
        number = {name: column[row].item() for name, column in self._numbers.items()}
        return VideoRow(number["fps"], number["width"], number["height"], number["frames"], number["duration"])

    def chunk_frames(self, video: str) -> np.ndarray:
        """How many frames each chunk of a video holds."""
        return self._index.column("chunk_frames")[self._row(video)].values.to_numpy()

    def read(self, video: str, chunk: int) -> bytes:
        """One chunk as MP4, checked against its checksum."""
        row = self._row(video)
        chunks = int(self._numbers["chunks"][row])
        if not 0 <= chunk < chunks:
            raise ValueError(f"chunk {chunk} asked of video {video!r}, which has chunks 0..{chunks - 1}")
        where = f"chunk {chunk} of video {video!r} in {str(self.path)!r}"
        try:
            record = self._records().read(int(self._numbers["first_record"][row]) + chunk)
        except RecordError as error:
            raise BrokenVideo(f"{where} cannot be read: {error}") from error
        mp4 = record.get("mp4", [b""])[0]
        if not isinstance(mp4, bytes) or checksum(mp4) != self._index.column("checksum")[row][chunk].as_py():
            raise BrokenVideo(f"{where} is damaged: its checksum is not the one it was written with")
        return mp4

    def decode(self, video: str, times_T: np.ndarray, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
        """The frames shown at these seconds, cut by one crop and scaled: uint8 [T, H, W, 3].

        A time past the end shows the last frame, as annotations run over by a little; a clip that lies wholly past
        the end is refused.
        """
        info = self.info(video)
        times_T = np.asarray(times_T, np.float64)
        if times_T.ndim != 1 or not (np.isfinite(times_T).all() and (times_T >= 0).all()):
            raise ValueError(f"times must be a list of seconds from 0 on, got {times_T}")
        if times_T.size and times_T.min() >= info.duration:
            raise BrokenVideo(
                f"video {video!r} ends at {info.duration:.2f} s, the clip starts at {times_T.min():.2f} s"
            )
        # The small number is for times that are frame times themselves, rounded down by a last bit.
        frames_T = np.minimum(np.floor(times_T * info.fps + 1e-6).astype(np.int64), info.frames - 1)
        ends = np.cumsum(self.chunk_frames(video))
        chunks_T = np.searchsorted(ends, frames_T, side="right")
        video_THWC = np.empty((len(times_T), *size, 3), np.uint8)
        for chunk in np.unique(chunks_T).tolist():
            here_T = chunks_T == chunk
            ranks = frames_T[here_T] - (ends[chunk - 1] if chunk else 0)
            mp4 = self.read(video, chunk)
            # Most clips lie in one chunk and are written where they belong at once.
            target = video_THWC if here_T.all() else None
            try:
                part = decode(mp4, ranks, crop, size, target)
            except BrokenVideo as error:
                raise BrokenVideo(f"chunk {chunk} of video {video!r} in {str(self.path)!r}: {error}") from error
            if target is None:
                video_THWC[here_T] = part
        return video_THWC

    def check(self) -> None:
        """Reads every shard's length and the last chunk of the store; a damaged chunk elsewhere shows when read."""
        first, chunks = self._numbers["first_record"], self._numbers["chunks"]
        if (first != np.cumsum(chunks) - chunks).any() or int(chunks.sum()) != sum(self._shards.values()):
            raise ValueError(f"the chunk store {str(self.path)!r} is damaged: its index and its shards disagree")
        self._records().open_all()
        self.read(self.videos[-1], int(chunks[-1]) - 1)

    def _row(self, video: str) -> int:
        try:
            return self._rows[video]
        except KeyError:
            hint = did_you_mean(video, self.videos) if len(self) <= 10_000 else ""
            raise ValueError(
                f"there is no video {video!r}{hint} among the {len(self)} of the chunk store {str(self.path)!r}"
            ) from None

    def _records(self) -> RecordReader:
        with self._reader_lock:
            # A reader has threads, which a forked child does not inherit.
            if self._reader is None or self._reader_process != os.getpid():
                shards = [self.path / name for name in self._shards]
                self._reader, self._reader_process = RecordReader(shards, self._shards.values()), os.getpid()
            return self._reader
