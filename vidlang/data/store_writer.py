"""Writes a chunk store: records, index and header, in a folder beside that takes the name when all is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.folders import built_aside
from vidlang.data.record_writer import RecordWriter
from vidlang.data.store_index import IndexWriter, checksum, write_header


@dataclass(frozen=True)
class CutVideo:
    """One video as chunks of MP4, in order; `chunks` may be any sequence that reads them when asked."""

    name: str
    fps: int | float | Fraction
    width: int
    height: int
    chunks: Sequence[bytes]
    chunk_frames: Sequence[int]


def write_store(
    path: str | Path, cut_videos: Iterable[CutVideo], settings: Any, *, overwrite: bool = False
) -> ChunkStore:
    """Writes the videos as a new store, in the order given, and opens it.

    `settings` (a dataclass or a mapping) is kept in store.json for whoever asks how the store was made. The store is
    built in a folder beside `path` that takes its name when all is written.
    """
    path = Path(path)
    check_target(path, overwrite)
    with built_aside(path) as building:
        _write(building, cut_videos, settings)
        open_store(building).check()
    return open_store(path)


def check_target(path: Path, overwrite: bool) -> None:
    """Raises unless a store may be written at `path`; only a store is ever overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "store.json").is_file():
        raise ValueError(f"{str(path)!r} exists and is not a chunk store; choose another place or remove it")
    if not overwrite:
        raise ValueError(f"there is a complete chunk store at {str(path)!r} already; use it, or overwrite it")


def _write(folder: Path, cut_videos: Iterable[CutVideo], settings: Any) -> None:
    content, seen, records = hashlib.blake2b(digest_size=16), set(), 0
    writer = RecordWriter(folder)
    with IndexWriter(folder) as index:
        for video in cut_videos:
            if video.name in seen:
                raise ValueError(f"two videos are called {video.name!r}; names in a store are unique")
            seen.add(video.name)
            row = _write_video(writer, video, records)
            content.update(json.dumps(row).encode())
            records += row["chunks"]
            index.add(row)
    if not seen:
        raise ValueError("a chunk store needs at least one video, got none")
    plain = asdict(settings) if hasattr(settings, "__dataclass_fields__") else dict(settings)
    write_header(folder, videos=len(seen), content_hash=content.hexdigest(), settings=plain, shards=writer.close())


def _write_video(writer: RecordWriter, video: CutVideo, first_record: int) -> dict[str, Any]:
    """Writes the chunks of one video; returns its row of the index."""
    if not len(video.chunks) or len(video.chunks) != len(video.chunk_frames) or min(video.chunk_frames) < 1:
        raise ValueError(
            f"video {video.name!r} has {len(video.chunks)} chunks of {list(video.chunk_frames)} frames; "
            "it needs at least one chunk, and a frame or more in each"
        )
    checksums = []
    for number, (mp4, frames) in enumerate(zip(video.chunks, video.chunk_frames, strict=True)):
        writer.add(video.name, number, int(frames), mp4)
        checksums.append(checksum(mp4))
    frames = int(sum(video.chunk_frames))
    return {
        "video": video.name,
        "first_record": first_record,
        "chunks": len(checksums),
        "fps": float(video.fps),
        "width": int(video.width),
        "height": int(video.height),
        "frames": frames,
        "duration": float(frames / Fraction(video.fps)),
        "chunk_frames": [int(count) for count in video.chunk_frames],
        "checksum": checksums,
    }
