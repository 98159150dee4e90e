"""Writes the records of a chunk store as a TFDS dataset in ArrayRecord files; see records.py for how they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DATASET, SPLIT, VERSION = "video_chunks", "chunks", "1.0.0"
CHUNKS_PER_SHARD = 2048  # about 3 GB of house chunks


class RecordWriter:
    """Writes chunks in the order given, into shards of a new TFDS dataset; metadata last, on `close`."""

    def __init__(self, folder: Path) -> None:
        import tensorflow_datasets as tfds

        features = tfds.features.FeaturesDict(
            {"video": tfds.features.Text(), "chunk": np.int64, "frames": np.int64, "mp4": tfds.features.Text()}
        )
        identity = tfds.core.DatasetIdentity(
            name=DATASET, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name="vidlang"
        )
        info = tfds.core.DatasetInfo(
            builder=identity, description="Short H.264 chunks of long videos, in order.", features=features
        )
        self._folder, self._count = folder, 0
        self._writer = tfds.core.SequentialWriter(info, CHUNKS_PER_SHARD, file_format="array_record")
        self._writer.initialize_splits([SPLIT])

    def add(self, video: str, chunk: int, frames: int, mp4: bytes) -> None:
        """Appends one record."""
        record = {"video": video, "chunk": chunk, "frames": frames, "mp4": mp4}
        self._writer.add_examples({SPLIT: [record]})
        self._count += 1

    def close(self) -> dict[str, int]:
        """Ends the dataset; returns its shards in order and how many records each holds."""
        self._writer.close_all()
        names = sorted(path.name for path in self._folder.glob(f"{DATASET}-{SPLIT}.*"))
        full, rest = divmod(self._count, CHUNKS_PER_SHARD)
        return dict(zip(names, [CHUNKS_PER_SHARD] * full + [rest] * (rest > 0), strict=True))
