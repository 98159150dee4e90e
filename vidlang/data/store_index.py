"""What lies beside the records of a chunk store: store.json for the whole, index.arrow with a row for each video."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

FORMAT_VERSION = 1
INDEX_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("first_record", pa.int64()),
        ("chunks", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int64()),
        ("duration", pa.float64()),
        ("chunk_frames", pa.list_(pa.int32())),
        ("checksum", pa.list_(pa.string())),
    ]
)
ROWS_AT_ONCE = 1024


class IndexWriter:
    """Writes the rows of an index as they come; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._file = pa.OSFile(str(folder / "index.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._file, INDEX_SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Appends the row of one video."""
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, INDEX_SCHEMA))
            self._rows = []

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._writer.close()
        self._file.close()


def read_index(path: Path, videos: int) -> pa.Table:
    """The index, mapped into memory: a row is read when it is asked for."""
    try:
        index = pa.ipc.open_file(pa.memory_map(str(path / "index.arrow"))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"the chunk store {str(path)!r} is damaged: index.arrow cannot be read") from error
    if not index.schema.equals(INDEX_SCHEMA) or len(index) != videos:
        raise ValueError(f"the chunk store {str(path)!r} is damaged: index.arrow does not fit store.json")
    return index


def write_header(
    folder: Path, *, videos: int, content_hash: str, settings: dict[str, Any], shards: dict[str, int]
) -> None:
    """Writes store.json; after it the folder is a store."""
    header = {
        "format_version": FORMAT_VERSION,
        "videos": videos,
        "content_hash": content_hash,
        "settings": settings,
        "shards": shards,
    }
    (folder / "store.json").write_text(json.dumps(header, indent=1, default=str) + "\n")


def read_header(path: Path) -> dict[str, Any]:
    """What store.json says; ValueError when the folder is not a store that can be read."""
    if not path.is_dir():
        raise ValueError(f"there is no chunk store at {str(path)!r}: no such folder; make one with launch.precut")
    try:
        header = json.loads((path / "store.json").read_text())
        version = header["format_version"]
    except FileNotFoundError:
        raise ValueError(
            f"{str(path)!r} is not a chunk store: it has no store.json; make one with launch.precut"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the chunk store {str(path)!r} is damaged: store.json cannot be read") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the chunk store {str(path)!r} has format version {version}, this vidlang reads {FORMAT_VERSION}; "
            "precut the videos again"
        )
    return header


def checksum(mp4: bytes) -> str:
    """What a chunk's bytes are held against when they are read."""
    return hashlib.blake2b(mp4, digest_size=16).hexdigest()
