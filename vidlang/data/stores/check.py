"""Everything that can be wrong with a store, found by reading all of it, as `launch.precut --check` does.

Reading clips finds damage only where it reads. Here every chunk is held against its checksum, every frame is decoded,
and what the files hold is compared with what the index, store.json and the metadata of TFDS say of them.
"""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow.compute as pc

from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.crops import CropBox
from vidlang.data.decode import decode, probe
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.files import VideoStore
from vidlang.data.stores.images import ImageFileStore, ImageRecordStore, image_size
from vidlang.data.stores.index import ContentHash, checksum
from vidlang.data.stores.records import RecordStore
from vidlang.data.workers.processes import worker_pool

ROWS_AT_ONCE = 16
EVEN_ROWS = 1 << 12
FEW = 4


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `video` is empty and `chunk` -1 where it is the store, or the video, as a whole."""

    video: str
    chunk: int
    kind: str  # one of failures.KINDS
    reason: str

    def __str__(self) -> str:
        where = f"{self.video!r}" if self.video else "the store"
        return f"{where}{f', chunk {self.chunk}' if self.chunk >= 0 else ''}: {self.reason} ({self.kind})"


def find_problems(
    store: ChunkStore, progress: Callable[[str], None] | None = None, workers: int = 1
) -> Iterator[Problem]:
    """All problems of a store as they are found; StoreAway when it cannot be reached.

    What happened to a whole shard is told once: one that does not open, or in which more than FEW chunks are broken.
    """
    found = _all_problems(store, progress, workers)
    return _by_shard(store, found) if isinstance(store, RecordStore) else found


def _all_problems(store: ChunkStore, progress: Callable[[str], None] | None, workers: int) -> Iterator[Problem]:
    done = told = 0
    lost: list[range] = []
    for problem in itertools.chain(_whole(store), _lost_shards(store, lost)):
        told += 1
        yield problem
    blocks = [range(first, min(first + ROWS_AT_ONCE, len(store))) for first in range(0, len(store), ROWS_AT_ONCE)]
    for block, found in zip(blocks, _checked(store, blocks, workers, tuple(lost)), strict=True):
        yield from found
        done, told = done + len(block), told + len(found)
        if progress is not None:
            progress(f"[{done}/{len(store)}] videos checked, {told} problems")


def _lost_shards(store: ChunkStore, lost: list[range]) -> Iterator[Problem]:
    """The shards that do not open; the numbers of their records are added to `lost`."""
    broken = store.broken_shards() if isinstance(store, RecordStore) else []
    if broken:
        store.require_present()
    for shard in broken:
        lost.append(shard.records)
        yield Problem("", -1, shard.error.kind, f"{shard.error}, and with it {_counted(shard.chunks, shard.videos)}")


def _by_shard(store: RecordStore, problems: Iterator[Problem]) -> Iterator[Problem]:
    """The same problems, but many of one kind in one shard as one; they come in the order of the records."""
    for (shard, kind), group in itertools.groupby(problems, lambda problem: (_shard(store, problem), problem.kind)):
        same = iter(group)
        yield from itertools.islice(same, FEW if shard else None)
        if rest := list(same):
            chunks, videos = len({(one.video, one.chunk) for one in rest}), len({one.video for one in rest})
            last = f"chunk {rest[-1].chunk} of {rest[-1].video!r}"
            yield Problem("", -1, kind, f"shard {shard}: the same of {_counted(chunks, videos)} more, up to {last}")


def _counted(chunks: int, videos: int) -> str:
    return f"{chunks} chunk{'s' * (chunks != 1)} of {videos} video{'s' * (videos != 1)}"


def _shard(store: RecordStore, problem: Problem) -> str:
    return store.shard(store.videos.find(problem.video), problem.chunk) if problem.chunk >= 0 else ""


def _checked(
    store: ChunkStore, blocks: Sequence[range], workers: int, lost: tuple[range, ...]
) -> Iterator[list[Problem]]:
    if workers <= 1:
        yield from (_check_rows(store, block, lost) for block in blocks)
        return
    place, content_hash = store.folder.path, store.content_hash
    with worker_pool(workers) as pool:
        yield from pool.map(_check_block, itertools.repeat((place, content_hash)), blocks, itertools.repeat(lost))


def _check_block(place: tuple[Any, str], block: range, lost: tuple[range, ...]) -> list[Problem]:
    return _check_rows(_opened(*place), block, lost)


@functools.lru_cache(maxsize=1)
def _opened(path: Any, content_hash: str) -> ChunkStore:
    return open_store(path, expect={"content_hash": content_hash})


def _whole(store: ChunkStore) -> Iterator[Problem]:
    """What shows without reading any chunk."""
    content = ContentHash()
    for first in range(0, len(store), EVEN_ROWS):
        columns = {name: column.slice(first, EVEN_ROWS).to_pylist() for name, column in store.columns.items()}
        for cells in zip(*columns.values(), strict=True):
            row = dict(zip(columns, cells, strict=True))
            content.add(row)
            yield from _row_problems(row)
    if content.hexdigest() != store.content_hash:
        yield Problem("", -1, "damaged", "the content hash in store.json is not that of index.arrow")
    if isinstance(store, RecordStore):
        if not store.records_fit():
            yield Problem("", -1, "damaged", "index.arrow does not name the records that the shards hold, in order")
        yield from _metadata_problems(store)
    yield from _settings_problems(store)


def _settings_problems(store: ChunkStore) -> Iterator[Problem]:
    """How the settings, which readers and people trust, differ from what was written with them."""
    settings = store.settings
    try:
        fps, seconds = (Fraction(settings[name]) if name in settings else None for name in ("fps", "chunk_seconds"))
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        yield Problem("", -1, "damaged", f"fps or chunk_seconds in the settings of store.json is no number: {error}")
        return
    if fps is None:
        return
    rates = store.columns["fps"].to_numpy()
    others = np.flatnonzero(~np.isclose(rates, float(fps), rtol=1e-9, atol=0))
    if len(others):
        yield _differing(store, others, f"says fps {fps}", f"{rates[others[0]]:g} frames a second")
    # Who cut an adopted folder may have rounded as he liked.
    if seconds is None or not (store.kind == "records" or "encode" in settings):
        return
    # In floating point where it was when they were cut: half a frame rounds either way.
    asked = settings["chunk_seconds"]
    wanted, counts = round((asked if isinstance(asked, float) else seconds) * fps), store.columns["chunk_frames"]
    lengths = pc.list_value_length(counts).to_numpy().astype(np.int64)
    frames, rows = pc.list_flatten(counts).to_numpy(), np.repeat(np.arange(len(lengths)), lengths)
    last = np.append(rows[1:] != rows[:-1], True)[: len(rows)]
    wrong = np.flatnonzero(np.where(last, frames > wanted, frames != wanted))
    if len(wrong):
        said = f"says {float(seconds):g} s at fps {fps}, so {wanted} frames a chunk"
        yield _differing(store, np.unique(rows[wrong]), said, f"a chunk of {frames[wrong[0]]}")


def _differing(store: ChunkStore, rows: np.ndarray, said: str, found: str) -> Problem:
    where = f"{len(rows)} of {len(store)} videos differ, the first {store.videos[int(rows[0])]!r} with {found}"
    return Problem("", -1, "damaged", f"store.json {said}: {where}")


def _row_problems(row: Mapping[str, Any]) -> Iterator[Problem]:
    counts = row["chunk_frames"]
    if not (row["chunks"] == len(counts) == len(row["checksum"]) > 0 and sum(counts) == row["frames"] > 0):
        yield Problem(row["video"], -1, "damaged", "the columns of its row in index.arrow do not fit one another")
    if not (row["fps"] > 0 and row["duration"] > 0 and min(row["width"], row["height"]) > 0):
        yield Problem(row["video"], -1, "damaged", "its row in index.arrow has a size, rate or duration of 0 or less")


def _metadata_problems(store: RecordStore) -> Iterator[Problem]:
    """How what TFDS would read differs from what we read."""
    if store.kind != "records":
        return
    shards: dict[str, int] = store.header["shards"]
    try:
        splits = json.loads(store.folder.read("dataset_info.json"))["splits"]
        lengths = [int(length) for split in splits for length in split["shardLengths"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        store.require_present()
        yield Problem("", -1, "missing", f"TFDS cannot read it: dataset_info.json: {error}")
    else:
        if lengths != list(shards.values()):
            yield Problem(
                "", -1, "damaged", f"dataset_info.json has shards of {lengths}, store.json {[*shards.values()]}"
            )


def _check_rows(store: ChunkStore, rows: range, lost: tuple[range, ...] = ()) -> list[Problem]:
    return [problem for row in rows for problem in _video_problems(store, row, lost)]


def _video_problems(store: ChunkStore, row: int, lost: tuple[range, ...]) -> Iterator[Problem]:
    video = store.videos[row]
    first = store.cell("first_record", row).as_py()
    # Of a damaged index the columns may differ in length, which was told of.
    for chunk in range(min(len(store.cell(name, row)) for name in ("chunk_frames", "checksum"))):
        if any(first + chunk in records for records in lost):
            continue
        try:
            content = store.read_chunk(row, chunk)
        except BrokenVideo as error:
            yield Problem(video, chunk, error.kind, str(error))
            continue
        try:
            for reason in _differences(store, row, chunk, content):
                yield Problem(video, chunk, "damaged", reason)
        except ValueError as error:
            yield Problem(video, chunk, error.kind if isinstance(error, BrokenVideo) else "unsupported", str(error))
    if isinstance(store, VideoStore):
        times = store.frame_times(row)
        info = store.info(video)
        if times is not None and not (len(times) == info.frames and times[0] == 0 and (np.diff(times) > 0).all()):
            yield Problem(video, -1, "damaged", "times.arrow does not hold one increasing time for each of its frames")


def _differences(store: ChunkStore, row: int, chunk: int, content: bytes | memoryview) -> Iterator[str]:
    """How a chunk that reads well differs from what is said of it; BrokenVideo when it does not decode."""
    info = store.info(store.videos[row])
    written = store.cell("checksum", row)[chunk].as_py()
    if not checksum(content).startswith(written):
        yield "its checksum is not the one it was written with"
    expected = (store.cell("chunk_frames", row)[chunk].as_py(), info.height, info.width)
    if isinstance(store, ImageFileStore | ImageRecordStore):
        found = (1, *image_size(bytes(content)))
    else:
        about = probe(content)
        found = (about.frames, about.height, about.width)
        smallest = CropBox(0, 0, 2, 2)
        with warnings.catch_warnings():
            # That reading is slow is no fault of the store, and was told when it was adopted.
            warnings.filterwarnings("ignore", "decoding a video from its start", UserWarning)
            decode(content, np.arange(about.frames), smallest, (2, 2))
    if found != expected:
        yield "it has {} frames of {} x {}, the index says {} of {} x {}".format(*found, *expected)
    if store.kind == "records" and isinstance(store, RecordStore):
        record = store.record(row, chunk)
        said = {"video": [store.videos[row].encode()], "chunk": [chunk], "frames": [expected[0]]}
        for name, value in said.items():
            if record.get(name) != value:
                yield f"its record says {name} {record.get(name)}, the index {value}"
