"""What can be known to be wrong before the first batch, each in one sentence."""

from __future__ import annotations

import os
import shutil

from vidlang.data.chunks import ChunkStore, open_store
from vidlang.data.clips import ClipTable
from vidlang.data.plan import ClipSpec
from vidlang.data.tokenizer import Tokenizer

SHARED_MEMORY = "/dev/shm"


def check_setup(
    table: ClipTable,
    tokenizer: Tokenizer,
    spec: ClipSpec,
    batch_size: int,
    process_index: int,
    process_count: int,
    workers: int,
    prefetch: int,
) -> ChunkStore:
    """Opens the table's store after everything that a config can get wrong was looked at."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"Process {process_index} of {process_count} does not exist; count from 0.")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"The batch size must be a multiple of the number of processes, found {batch_size} for {process_count}."
        )
    if workers < 0 or prefetch < 0:
        raise ValueError(f"Workers and prefetch must be at least 0, found {workers} and {prefetch}.")
    if tokenizer.length != spec.text_length:
        raise ValueError(
            f"The tokenizer makes {tokenizer.length} tokens and clip.text_length is {spec.text_length}; make the "
            "tokenizer with Tokenizer(path, spec.text_length)."
        )
    for name in spec.fields:
        table.dtype(name)
    if table.store is None:
        raise ValueError("The clip table names no chunk store; build it with ClipTable.from_columns(..., store=path).")
    store = open_store(table.store)
    _check_videos(table, store)
    return store


def _check_videos(table: ClipTable, store: ChunkStore) -> None:
    present = set(store.videos)
    absent = [video for video in table.videos() if video not in present]
    if absent:
        raise ValueError(
            f"{len(absent)} videos of the clip table are not in the chunk store {table.store}, the first is "
            f"{absent[0]!r}; precut them, or leave their clips out with table.only_videos(store.videos)."
        )


def check_memory(spec: ClipSpec, local_batch: int, workers: int, each: int) -> None:
    """Raises when the batches that the workers keep ready cannot lie in shared memory, which would kill them."""
    if not workers or not os.path.isdir(SHARED_MEMORY):
        return
    # As counted in practice: `each` in the queue of a worker and as many taken from it, one made and one waiting to be
    # queued; two are with the consumer.
    count = workers * (2 * each + 2) + 2
    needed = count * local_batch * spec.frames * spec.size**2 * 3
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ValueError(
            f"{workers} workers keep {count} batches, {needed / 1e9:.2f} GB, in shared memory, and {SHARED_MEMORY} has "
            f"{free / 1e9:.2f} GB free; take fewer workers, a smaller batch, or a container with a larger --shm-size."
        )
