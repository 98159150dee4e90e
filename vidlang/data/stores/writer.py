"""Writes a chunk store: shards, then index and header, in a folder beside that takes the name when all is written.

The bytes of a store depend on its videos and settings alone, and its content hash on the videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.cutting.spool import chunk_row
from vidlang.data.cutting.target import check_target
from vidlang.data.cutting.video import CutVideo
from vidlang.data.folders import built_aside
from vidlang.data.stores.index import FILE_SCHEMA, INDEX_SCHEMA, ContentHash, IndexWriter, write_header
from vidlang.data.stores.record_writer import ShardWriter, is_full, shard_name, sync, write_metadata

__all__ = ["CutVideo", "check_target", "close_store", "write_store"]


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
        lines: list[dict[str, Any]] = []
        videos = iter(cut_videos)
        for first in videos:
            lines.append(_write_shard(building, len(lines), first, videos))
        close_store(building, lines, plain(settings), layout="records")
        open_store(building).check()
    return open_store(path)


def _write_shard(folder: Path, number: int, first: CutVideo, rest: Iterator[CutVideo]) -> dict[str, Any]:
    """Writes videos until the shard is full; what the journal of a longer run would say of it."""
    rows = []
    with ShardWriter(folder / shard_name(number)) as writer:
        video: CutVideo | None = first
        while video is not None:
            chunks = zip(video.chunks, video.chunk_frames, strict=True)
            checksums = [writer.add(video.name, k, int(frames), mp4) for k, (mp4, frames) in enumerate(chunks)]
            rows.append(chunk_row(video, checksums))
            video = None if is_full(writer.records, writer.bytes) else next(rest, None)
    return shard_line(folder, number, writer, rows)


def shard_line(folder: Path, number: int, writer: ShardWriter, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is noted of a shard that is written."""
    name = shard_name(number)
    return {
        "files": {name: (folder / name).stat().st_size},
        "records": writer.records,
        "stored": writer.stored,
        "rows": rows,
    }


def plain(settings: Any) -> dict[str, Any]:
    """Settings as a dictionary."""
    return asdict(settings) if hasattr(settings, "__dataclass_fields__") else dict(settings)


def close_store(folder: Path, lines: Iterable[Mapping[str, Any]], settings: Mapping[str, Any], *, layout: str) -> None:
    """Writes index and header of a folder whose shards or chunk files are there; `lines` say what they hold."""
    content, seen, records, stored = ContentHash(), set(), 0, 0
    shards: dict[str, int] = {}
    with IndexWriter(folder, INDEX_SCHEMA if layout == "records" else FILE_SCHEMA) as index:
        for line in lines:
            if layout == "records":
                shards.update({name: line["records"] for name in line["files"]})
                stored += line["stored"]
            for row in line["rows"]:
                if row["video"] in seen:
                    raise ValueError(f"two videos are called {row['video']!r}; names in a store are unique")
                seen.add(row["video"])
                row = {"video": row["video"], "first_record": records, **row}
                content.add(row)
                records += row["chunks"]
                index.add(row)
    if not seen:
        raise ValueError("a chunk store needs at least one video, got none")
    more: dict[str, Any] = {}
    if layout == "records":
        write_metadata(folder, list(shards.values()), stored)
    else:
        more = {"kind": "chunk_files", "layout": layout, "root": ".", "cut_seconds": settings["chunk_seconds"]}
    write_header(folder, videos=len(seen), content_hash=content.hexdigest(), settings=settings, shards=shards, **more)
    for name in ("index.arrow", "store.json"):
        sync(folder / name)
    sync(folder)
