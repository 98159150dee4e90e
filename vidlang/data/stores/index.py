"""What lies beside the content of a chunk store: store.json for the whole, index.arrow with a row for each video."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from vidlang.data.failures import StoreAway
from vidlang.data.stores.header import FORMAT_VERSION
from vidlang.data.stores.remote import Folder, RemoteFolder, kept_file

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
# Where the chunks are files of their own: their paths from the root, their lengths, and when they were last changed.
FILE_SCHEMA = pa.schema(
    [
        *INDEX_SCHEMA,
        ("file", pa.list_(pa.string())),
        ("bytes", pa.list_(pa.int64())),
        ("modified_ns", pa.list_(pa.int64())),
    ]
)
TIMES_SCHEMA = pa.schema([("times", pa.list_(pa.float64()))])
ROWS_AT_ONCE = 1024
CHECKSUM_LETTERS = 40
MAPPED_FROM = 16 << 20  # bytes


class IndexWriter:
    """Writes the rows of an index as they come; a context manager."""

    def __init__(self, folder: Path, schema: pa.Schema = INDEX_SCHEMA) -> None:
        self._file = pa.OSFile(str(folder / "index.arrow"), "wb")
        self._schema = schema
        self._writer = pa.ipc.new_file(self._file, schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Appends the row of one video."""
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._writer.close()
        self._file.close()


class ContentHash:
    """What tells two stores apart: a hash over the rows of the index, in order, less where and when files lie."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes the next row in."""
        self._hash.update(json.dumps({name: row[name] for name in INDEX_SCHEMA.names}).encode())

    def hexdigest(self) -> str:
        """The hash of all rows so far."""
        return self._hash.hexdigest()


def write_header(
    folder: Path,
    *,
    videos: int,
    content_hash: str,
    settings: Mapping[str, Any],
    shards: Mapping[str, int],
    kind: str = "records",
    **more: Any,
) -> None:
    """Writes store.json, after index.arrow; with it the folder is a store."""
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "videos": videos,
        "content_hash": content_hash,
        "settings": dict(settings),
        "shards": dict(shards),
        "index": stamp(folder / "index.arrow"),
        **more,
    }
    # Renamed, so that a folder never has half of it.
    half = folder / "store.json.part"
    half.write_text(json.dumps(header, indent=1, default=str) + "\n")
    half.replace(folder / "store.json")


def stamp(path: Path) -> dict[str, Any]:
    """Length and checksum of a file, by which store.json knows it."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def load_index(folder: Folder, header: Mapping[str, Any]) -> pa.Table:
    """The index that belongs to a header, mapped into memory: a row is read when it is asked for."""
    index = _load(folder, "index.arrow", header.get("index"), header["videos"])
    schema = INDEX_SCHEMA if header["shards"] else FILE_SCHEMA
    if not index.schema.equals(schema):
        raise ValueError(f"the chunk store {str(folder)!r} is damaged: index.arrow does not fit store.json")
    if any(column.null_count for column in index.columns) or not len(index):
        raise ValueError(f"the chunk store {str(folder)!r} is damaged: index.arrow has rows without values, or none")
    return index


def load_times(folder: Folder, header: Mapping[str, Any]) -> pa.ChunkedArray:
    """The times of the frames of each video of a store of whole videos, null where they are evenly spaced."""
    times = _load(folder, "times.arrow", header.get("times", {}), header["videos"])
    if not times.schema.equals(TIMES_SCHEMA):
        raise ValueError(f"the chunk store {str(folder)!r} is damaged: times.arrow does not fit store.json")
    return times.column("times")


def _load(folder: Folder, name: str, known: Mapping[str, Any] | None, rows: int) -> pa.Table:
    """A table beside store.json, mapped, and held against what store.json says of it."""
    damaged = f"the chunk store {str(folder)!r} is damaged: {name}"
    try:
        source = _fetched(folder, name, known) if isinstance(folder, RemoteFolder) else _source(folder.local(name))
    except FileNotFoundError as error:
        raise ValueError(f"{damaged} is missing") from error
    except OSError as error:
        raise StoreAway(f"the chunk store {str(folder)!r} cannot be reached: {name}: {error}") from error
    _check_stamp(source, known, damaged)
    try:
        table = pa.ipc.open_file(source).read_all()
        if known is None:
            # Arrow trusts what it maps; a damaged offset would lead it astray.
            table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{damaged} cannot be read") from error
    if len(table) != rows:
        raise ValueError(f"{damaged} does not fit store.json")
    return table


def _fetched(folder: RemoteFolder, name: str, known: Mapping[str, Any] | None) -> pa.Buffer:
    """A file of a remote store, by its content from a cache on this machine."""
    if known is None:
        return pa.py_buffer(folder.read(name))
    sha256, size = str(known.get("sha256")), known.get("bytes")
    try:
        return _source(kept_file(folder, name, sha256, size))
    except FileNotFoundError:
        # Another process may have made room in the cache just now; what is missing from the store is so again.
        return _source(kept_file(folder, name, sha256, size))


def _source(path: Path) -> pa.Buffer:
    """The file's bytes: a small one is copied, for one that is mapped ends the process if it shrinks or its disk goes.

    A large one is mapped all the same, so that the workers of a machine share it. That is safe for a store on a local
    disk that is replaced or deleted as a whole; one on a network file system is safe while nobody deletes it.
    """
    if path.stat().st_size <= MAPPED_FROM:
        return pa.py_buffer(path.read_bytes())
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def _check_stamp(source: pa.Buffer, known: Mapping[str, Any] | None, damaged: str) -> None:
    if known is None:
        return
    if source.size != known.get("bytes"):
        raise ValueError(f"{damaged} has {source.size} bytes, store.json says {known.get('bytes')}")
    if hashlib.sha256(source).hexdigest() != known.get("sha256"):
        raise ValueError(f"{damaged} is not the one that store.json was written for")


def checksum(content: bytes | memoryview) -> str:
    """What a chunk's bytes are held against: BLAKE2b, which tells what they are, then CRC-32, which reading compares.

    To hash a chunk costs a quarter of decoding a clip of it, and a CRC a seventh of that. It misses one random damage
    in four thousand million, and of single flipped bits none.
    """
    return f"{hashlib.blake2b(content, digest_size=16).hexdigest()}{zlib.crc32(content):08x}"


def is_intact(content: bytes | memoryview, expected: str) -> bool:
    """Whether these are the bytes that a checksum was made of; of older stores it has no CRC."""
    if len(expected) == CHECKSUM_LETTERS:
        return f"{zlib.crc32(content):08x}" == expected[-8:]
    return hashlib.blake2b(content, digest_size=16).hexdigest() == expected
