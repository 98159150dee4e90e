"""A store whose chunks are the records of a TFDS dataset: what precutting makes."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidlang.data.chunks import ChunkStore
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.record_reader import RecordReader
from vidlang.data.stores.remote import Folder


@dataclass(frozen=True)
class BrokenShard:
    """A shard that does not open, and what is lost with it."""

    error: BrokenVideo
    records: range
    chunks: int
    videos: int


class RecordStore(ChunkStore):
    """Chunks as records of a TFDS dataset."""

    # What holds the records and by what name; images of TFDS are read the same way.
    feature = "mp4"

    def __init__(self, folder: Folder, header: Mapping[str, Any]) -> None:
        super().__init__(folder, header)
        self._shards: dict[str, int] = header["shards"]
        self._reader: RecordReader | None = None
        self._reader_process, self._reader_lock = 0, threading.Lock()

    def check(self) -> None:
        """Reads every shard's length and the last chunk of the store; a damaged chunk elsewhere shows when read."""
        if not self.records_fit():
            raise ValueError(f"the chunk store {str(self.path)!r} is damaged: its index and its shards disagree")
        self._records().open_all()
        super().check()

    def records_fit(self) -> bool:
        """Whether the index names the records that the shards hold, one after another."""
        first, chunks = self.columns["first_record"].to_numpy(), self.columns["chunks"].to_numpy().astype(np.int64)
        return not (first != np.cumsum(chunks) - chunks).any() and int(chunks.sum()) == sum(self._shards.values())

    def broken_shards(self) -> list[BrokenShard]:
        """The shards that do not open, however often, each with how much of the store it holds."""
        first, found = self.columns["first_record"].to_numpy(), []
        ends = first + self.columns["chunks"].to_numpy()
        for records, error in self._records().failures():
            inside = np.minimum(ends, records.stop) - np.maximum(first, records.start)
            found.append(BrokenShard(error, records, int(inside[inside > 0].sum()), int((inside > 0).sum())))
        return found

    def shard(self, row: int, chunk: int) -> str:
        """The name of the file that holds a chunk; empty for one that the shards do not hold."""
        record = self.cell("first_record", row).as_py() + chunk
        ends = np.cumsum([*self._shards.values()])
        return [*self._shards, ""][int(np.searchsorted(ends, record, side="right"))] if record >= 0 else ""

    def record(self, row: int, chunk: int) -> dict[str, list[bytes] | list[int]]:
        """All features of a record; RecordError when it cannot be read."""
        return self._records().read(self.cell("first_record", row).as_py() + chunk)

    def _content(self, row: int, chunk: int) -> bytes | memoryview:
        values = self.record(row, chunk).get(self.feature, [b""])
        return values[0] if values and isinstance(values[0], bytes) else b""

    def _forget(self, row: int, chunk: int) -> None:
        self._records().forget(self.cell("first_record", row).as_py() + chunk)

    def _shard_folder(self) -> Folder:
        return self.folder

    def _records(self) -> RecordReader:
        with self._reader_lock:
            # A reader has threads, which a forked child does not inherit.
            if self._reader is None or self._reader_process != os.getpid():
                self._reader, self._reader_process = RecordReader(self._shard_folder(), self._shards), os.getpid()
            return self._reader
