"""How many worker processes a stream takes, and whether their batches fit into shared memory."""

from __future__ import annotations

import math
import shutil

from absl import logging

from vidlang.data.plan import ClipSpec
from vidlang.data.workers.blocks import shared_folder
from vidlang.data.workers.machine import available_cores, available_memory

# What a worker holds besides batches: Python, Grain, the codec and its own part of what is mapped.
_WORKER_BYTES = 300e6


def batch_bytes(spec: ClipSpec, local_batch: int) -> int:
    """What one process's part of a batch takes, nearly all of it frames or features."""
    video = 0 if spec.text_only else math.prod(spec.video_shape) * spec.video_dtype.itemsize
    return local_batch * max(video, 4 * spec.text_length)


def settle_workers(workers: int, prefetch: int, size: int) -> int:
    """The number of workers asked for, or for -1 one that suits this machine; raises when they cannot work.

    One core is left to the process that trains. `size` is that of a batch in bytes.
    """
    if workers < -1 or prefetch < 0:
        raise ValueError(
            f"Workers must be at least 0, or -1 to have their number chosen, and prefetch at least 0; found {workers} "
            f"and {prefetch}."
        )
    if workers >= 0:
        check_memory(size, workers, prefetch)
        return workers
    cores, memory = available_cores(), available_memory()
    workers = max(cores - 1, 0)
    while workers and not (
        kept_batches(workers, prefetch) * size <= shutil.disk_usage(shared_folder()).free
        and workers * _WORKER_BYTES + kept_batches(workers, prefetch) * size <= memory
    ):
        workers -= 1
    logging.info(
        "Taking %d data workers: %d cores, %.1f GB of memory, batches of %.1f MB.",
        workers,
        cores,
        memory / 1e9,
        size / 1e6,
    )
    return workers


def each(prefetch: int, workers: int) -> int:
    """Batches that each worker keeps ready, so that all of them together keep at least `prefetch`."""
    return max(1, -(-prefetch // max(workers, 1)))


def kept_batches(workers: int, prefetch: int) -> int:
    """Batches that lie in shared memory at most.

    As counted in practice: `each` in the queue of a worker and as many taken from it, one made and one waiting to be
    queued; two are with the consumer.
    """
    return workers * (2 * each(prefetch, workers) + 2) + 2


def check_memory(size: int, workers: int, prefetch: int) -> None:
    """Raises when the batches that the workers keep ready cannot lie in shared memory, which would kill them."""
    if not workers:
        return
    count, free = kept_batches(workers, prefetch), shutil.disk_usage(shared_folder()).free
    if count * size > free:
        raise ValueError(
            f"{workers} workers keep {count} batches, {count * size / 1e9:.2f} GB, in shared memory, and "
            f"{shared_folder()} has {free / 1e9:.2f} GB free; take fewer workers, a smaller batch, or a container with "
            "a larger --shm-size."
        )
