"""Stores over files that somebody else made: short chunks by their names, or whole videos. The files stay as they are.

A chunk file is read whole and held against its checksum, as a record is. For a whole video that would cost more than
decoding: its checksum is computed when a process first reads it, and again when its length or its date has changed.
Whole videos are mapped into memory, for a clip touches a small part of one: a local file that is deleted or replaced by
another is read on as it was, but one that shrinks, or whose disk goes, amid decoding ends the process (SIGBUS).
"""

from __future__ import annotations

import os
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vidlang.data.chunks import ChunkStore, VideoRow
from vidlang.data.failures import StoreAway
from vidlang.data.stores.index import load_times
from vidlang.data.stores.record_reader import RecordError
from vidlang.data.stores.remote import Folder, LocalFolder, is_address, open_folder

REMEMBERED = 1 << 16  # videos of which a process knows that they are intact


def root_folder(folder: Folder, header: Mapping[str, Any]) -> Folder:
    """Where the files of an adopted folder lie, seen from where its store lies now."""
    root = header.get("root", ".")
    if is_address(root) or os.path.isabs(root):
        return open_folder(root)
    if isinstance(folder, LocalFolder):
        return LocalFolder(Path(os.path.normpath(folder.path / root)))
    scheme, _, rest = folder.path.partition("://")
    return open_folder(f"{scheme}://{posixpath.normpath(posixpath.join(rest, root))}")


def require_root(root: Folder, where: str) -> None:
    """Raises StoreAway where the folder of the files is gone or, as an unmounted disk leaves it, empty."""
    try:
        there, reason = root.occupied(), "it is empty"
    except OSError as error:
        there, reason = False, str(error)
    if not there:
        raise StoreAway(f"the files of the chunk store {where!r} in {str(root)!r} cannot be reached: {reason}")


class FileStore(ChunkStore):
    """A store whose chunks are files."""

    def __init__(self, folder: Folder, header: Mapping[str, Any]) -> None:
        super().__init__(folder, header)
        self.root = root_folder(folder, header)

    def require_present(self) -> None:
        """Raises StoreAway where the store, or the folder of its files, cannot be reached."""
        super().require_present()
        require_root(self.root, str(self.path))

    def file(self, row: int, chunk: int) -> str:
        """The path of a chunk, from the root."""
        name: str = self.cell("file", row)[chunk].as_py()
        # A damaged index must not lead out of the folder.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise RecordError(f"its file {name!r} is not below {str(self.root)!r}")
        return name

    def _content(self, row: int, chunk: int) -> bytes | memoryview:
        content = self._load(self.file(row, chunk))
        size = self.cell("bytes", row)[chunk].as_py()
        if len(content) < size:
            kind = "truncated" if len(content) else "empty"
            raise RecordError(f"its file has {len(content)} bytes, it had {size} when it was adopted", kind)
        return content

    def _load(self, name: str) -> bytes | memoryview:
        return self.root.read(name)


class ChunkFileStore(FileStore):
    """Short chunks, one a file: VIDEO.mp4/0.mp4, 15.mp4, ... (by seconds) or VIDEO/0.mp4, 1.mp4, ... (by index).

    Chunk k of an adopted folder begins at k times the seconds it was cut by, however many frames those before it hold:
    cutting 29.97 frames a second leaves 449 or 451 where 450 were meant, which must not add up.
    """

    def _frames_at(self, row: int, times_T: np.ndarray, info: VideoRow) -> np.ndarray:
        counts = self.cell("chunk_frames", row).values.to_numpy()
        length = self.header.get("cut_seconds")
        if length is None or len(counts) == 1:
            return super()._frames_at(row, times_T, info)
        # The small number is for times that are frame times themselves, rounded down by a last bit.
        later_T = np.minimum(times_T, info.duration) + 1e-6 / info.fps
        chunks_T = np.minimum((later_T / length).astype(np.int64), len(counts) - 1)
        ranks_T = ((later_T - chunks_T * length) * info.fps).astype(np.int64)
        return (np.cumsum(counts) - counts)[chunks_T] + np.minimum(ranks_T, counts[chunks_T] - 1)


class VideoStore(FileStore):
    """Whole videos of any container, with the time of every frame."""

    def __init__(self, folder: Folder, header: Mapping[str, Any]) -> None:
        super().__init__(folder, header)
        self._times = load_times(folder, header)
        self._verified: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._verified_lock = threading.Lock()

    def frame_times(self, row: int) -> np.ndarray | None:
        """The times of a video's frames in seconds, None where they are evenly spaced from 0 on."""
        times = self._times[row].values
        return None if times is None else times.to_numpy()

    def _load(self, name: str) -> bytes | memoryview:
        return self.root.content(name)

    def _intact(self, content: bytes | memoryview, row: int, chunk: int) -> bool:
        if self.root.remote:
            return super()._intact(content, row, chunk)
        state = self.root.state(self.file(row, chunk))
        with self._verified_lock:
            if self._verified.get(row) == state:
                return True
        if not super()._intact(content, row, chunk):
            return False
        with self._verified_lock:
            self._verified[row] = state
            while len(self._verified) > REMEMBERED:
                self._verified.popitem(last=False)
        return True

    def _forget(self, row: int, chunk: int) -> None:
        with self._verified_lock:
            self._verified.pop(row, None)

    def _frames_at(self, row: int, times_T: np.ndarray, info: VideoRow) -> np.ndarray:
        times = self.frame_times(row)
        if times is None:
            return super()._frames_at(row, times_T, info)
        # The frame shown is the last that has begun; the small number is for times rounded down by a last bit.
        return np.searchsorted(times, times_T + 1e-6 / info.fps, side="right") - 1
