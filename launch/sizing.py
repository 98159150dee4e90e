"""Tells whether disk and cores can feed a training, before it is started.

    python -m launch.sizing --batch=2048 --step_s=4 --disk=500 --cores=64
    python -m launch.sizing --store=data/store --batch=256 --step_s=0.5 --disk=3000

With --store the bitrate and the length of chunks are those of the store. --clips_per_core is a figure to measure: run
benchmarks/pipeline.py for clips like yours. Exit code 1 when the accelerators would wait.
"""

import os

from absl import flags

from launch import cli
from vidlang.data.chunks import open_store
from vidlang.data.sizing import Sizing

BATCH = flags.DEFINE_integer("batch", None, "Clips of a step, of all hosts together.", required=True)
STEP = flags.DEFINE_float("step_s", None, "Seconds of a step.", required=True)
DISK = flags.DEFINE_float("disk", 500.0, "MB/s that a host reads: hard disk 80, SATA SSD 500, NVMe 3000.")
CORES = flags.DEFINE_integer("cores", os.cpu_count() or 1, "Cores of a host that may decode.")
HOSTS = flags.DEFINE_integer("hosts", 1, "Hosts that share the batch.")
RATE = flags.DEFINE_float("clips_per_core", 100.0, "Clips a second that one core decodes.")
STORE = flags.DEFINE(cli.PATH, "store", None, "A chunk store to learn bitrate and length of chunks from.")
BITRATE = flags.DEFINE_float("bitrate", 0.8, "Mb a second of the store's video, where no --store is given.")
CHUNK = flags.DEFINE_float("chunk_s", 15.0, "Seconds of a chunk, where no --store is given.")


def main(argv: list[str]) -> None:
    """Prints the report."""
    del argv
    bitrate, seconds = BITRATE.value, CHUNK.value
    if STORE.value:
        bitrate, seconds = measure(STORE.value)
        print(f"{STORE.value}: {bitrate:.2f} Mb/s in chunks of {seconds:g} s")
    sizing = Sizing(BATCH.value, STEP.value, bitrate, seconds, DISK.value, RATE.value, CORES.value, HOSTS.value)
    print(sizing.report())
    if sizing.fastest_step > sizing.step_seconds:
        raise SystemExit(1)


def measure(path: str) -> tuple[float, float]:
    """(Mb a second, seconds of a whole chunk) of a store, from at most 50 of its chunks, spread over it."""
    store = open_store(path)
    size, length, longest = 0, 0.0, 0.0
    step = max(1, len(store) // 50)
    for video in list(store.videos)[::step]:
        frames, fps = store.chunk_frames(video), store.info(video).fps
        size += len(store.read(video, 0))
        length += frames[0] / fps
        longest = max(longest, frames[0] / fps)
    return 8 * size / length / 1e6, longest


if __name__ == "__main__":
    cli.run(main)
