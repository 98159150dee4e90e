"""From the spool to the store: which videos share a shard, and the writing of one shard or of one video's files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vidlang.data.cutting import spool
from vidlang.data.cutting.inputs import Input
from vidlang.data.cutting.work import Work
from vidlang.data.stores.record_writer import ShardWriter, is_full, read_shard, shard_name, sync
from vidlang.data.stores.writer import shard_line

LAYOUTS = ("records", "seconds", "index")
# Files of a store have this time of change, so that an index that holds it is the same whenever it was made.
MODIFIED = 10**9


@dataclass(frozen=True)
class Batch:
    """Videos that go into the store together: all of a shard, or one whose chunks are files."""

    shard: int
    numbers: tuple[int, ...]


class Planner:
    """Decides what can be written, from what is cut; the decision does not depend on when it is asked."""

    def __init__(self, work: Work, layout: str) -> None:
        self._work, self._records = work, layout == "records"
        self._shard = work.lines
        self._next = max(work.written, default=-1) + 1
        self._numbers: list[int] = []
        self._chunks = self._size = 0

    def ready(self) -> Iterator[Batch]:
        """What has become complete since the last call."""
        if not self._records:
            cut = sorted(number for number, outcome in self._work.outcomes.items() if outcome.row)
            yield from (Batch(0, (number,)) for number in cut)
            return
        last = len(self._work.videos)
        while self._next < last and (outcome := self._work.outcomes.get(self._next)) is not None:
            if outcome.row is not None:
                self._numbers.append(self._next)
                self._chunks += outcome.row["chunks"]
                self._size += outcome.size
            self._next += 1
            if is_full(self._chunks, self._size):
                yield self._close()
        if self._next == last and self._numbers:
            yield self._close()

    def _close(self) -> Batch:
        batch = Batch(self._shard, tuple(self._numbers))
        self._shard, self._numbers = self._shard + 1, []
        self._chunks = self._size = 0
        return batch


def write_shard(spool_folder: Path, store: Path, batch: Batch) -> dict[str, Any]:
    """Writes a shard from the spool; returns what the journal is to say of it."""
    rows = []
    with ShardWriter(store / shard_name(batch.shard)) as writer:
        for number in batch.numbers:
            outcome = spool.load(spool_folder, number, verify=False)
            if outcome is None or outcome.row is None:
                raise OSError(f"the spool's entry {number} is damaged: run this again, and the video is cut again")
            row = outcome.row
            for place, (frames, expected) in enumerate(zip(row["chunk_frames"], row["checksum"], strict=True)):
                if writer.add(row["video"], place, frames, spool.chunk(spool_folder, number, place)) != expected:
                    raise OSError(f"a chunk of {row['video']!r} in the spool has changed: run this again")
            rows.append(row)
    return {"numbers": list(batch.numbers), **shard_line(store, batch.shard, writer, rows)}


def write_files(work: Work, number: int, layout: str, chunk_seconds: float) -> dict[str, Any]:
    """Copies the chunks of one video to their place in the store; returns the line for the journal."""
    outcome = work.outcomes[number]
    assert outcome.row is not None, "only what was cut is placed"
    folder, sizes = video_folder(outcome.row["video"], layout), []
    names = [chunk_name(place, layout, chunk_seconds) for place in range(outcome.row["chunks"])]
    # Not in the store, where a video may have any name.
    part = work.root / "parts" / f"{number:07d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for place, name in enumerate(names):
        mp4 = spool.chunk(work.spool, number, place)
        (part / name).write_bytes(mp4)
        os.utime(part / name, (MODIFIED, MODIFIED))
        sync(part / name)
        sizes.append(len(mp4))
    # Not the whole folder at once: another video's may lie in it.
    (work.store / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        os.replace(part / name, work.store / folder / name)
    part.rmdir()
    sync(work.store / folder)
    files = {
        "file": [f"{folder}/{name}" for name in names],
        "bytes": sizes,
        "modified_ns": [MODIFIED * 10**9] * len(names),
    }
    return {"numbers": [number], "files": {folder: sum(sizes)}, "rows": [{**outcome.row, **files}]}


def video_folder(name: str, layout: str) -> str:
    """Where the chunks of a video lie in the store."""
    return f"{name}.mp4" if layout == "seconds" else name


def chunk_name(place: int, layout: str, chunk_seconds: float) -> str:
    """The file of a video's chunk: by the second at which it starts, or by its number."""
    return f"{place * int(chunk_seconds) if layout == 'seconds' else place}.mp4"


def check_layout(layout: str, chunk_seconds: float, videos: list[Input]) -> None:
    """Raises where the names of chunk files would not do."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
    if layout == "seconds" and chunk_seconds != int(chunk_seconds):
        raise ValueError(f"layout 'seconds' names chunks by whole seconds, and they last {chunk_seconds} s")
    if layout == "records":
        return
    names = {video_folder(video.name, layout) for video in videos}
    for name in names:
        if name in ("store.json", "index.arrow", "failed.jsonl"):
            raise ValueError(f"a video cannot be called {name!r} where its chunks are files")
        for parent in PurePosixPath(name).parents:
            if str(parent) in names:
                raise ValueError(f"the videos {str(parent)!r} and {name!r} would lie in one folder; rename one")


def unpack(work: Work, first: int) -> None:
    """Takes all shards from that of video `first` on apart, back into the spool, for another video to go in.

    A kill in the middle costs nothing: until the journal is shortened, what it says is still there.
    """
    names = []
    for line in work.journal():
        if line["numbers"][-1] < first:
            continue
        (name,) = line["files"]
        names.append(name)
        chunks = read_shard(work.target.fetch(name))
        for number, row in zip(line["numbers"], line["rows"], strict=True):
            part = work.spool / f"{number:07d}.part"
            shutil.rmtree(part, ignore_errors=True)
            (part / "chunks").mkdir(parents=True)
            size = 0
            for place in range(row["chunks"]):
                mp4 = next(chunks)
                (part / "chunks" / f"{place}.mp4").write_bytes(mp4)
                size += len(mp4)
            outcome = spool.Outcome(row, size, None)
            spool.enter(work.spool, number, part, outcome)
            work.add(number, outcome)
    work.forget(line for line in work.journal() if line["numbers"][-1] < first)
    for name in names:
        (work.store / name).unlink(missing_ok=True)
