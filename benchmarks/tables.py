"""What tables of millions of clips cost: seconds to load them, and memory of each worker process that draws from them.

    python -m benchmarks.tables                        # 4 million rows as csv, 35 million as a table; about a minute
    python -m benchmarks.tables --rows=200000 --mapped_rows=0 --json=tables.json

A file in EgoClip's format is written, loaded for the first time (read, checked against a store, kept) and again, each
in a fresh process. `first` and `again` are seconds of `load` alone, `peak` is what the loading process held at most.
Then fresh workers get the pickled table and draw rows. `own` is memory that a worker shares with nobody (anonymous
pages in the kernel's count): what unpickling and drawing added to it, for the file's pages belong to all. The large
table is written without a csv, part by part, as no file of this size is published as one.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import app, flags

from vidlang.data.clips import ClipTable
from vidlang.data.stores.writer import CutVideo, write_store
from vidlang.datasets import egoclip
from vidlang.datasets._texts import one_text

ROWS = flags.DEFINE_integer("rows", 4_000_000, "Rows of the csv; 0 leaves it out.")
MAPPED_ROWS = flags.DEFINE_integer("mapped_rows", 35_000_000, "Rows of the table without csv; 0 leaves it out.")
WORKERS = flags.DEFINE_integer("workers", 2, "Processes that draw rows.")
DRAWS = flags.DEFINE_integer("draws", 20_000, "Rows that each of them draws.")
JSON = flags.DEFINE_string("json", None, "A file for the figures.")

VIDEOS, SECONDS = 9_645, 1_200.0
PART = 200_000
WORDS = "picks opens cuts holds washes moves the a bag knife door plate bottle from to on with floor table hand".split()


def main(argv: list[str]) -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        videos = [CutVideo(f"video-{n:08d}-4748-8564", 30, 64, 48, [b"-"], [int(30 * SECONDS)]) for n in range(VIDEOS)]
        write_store(root / "store", videos, {"fps": 30})
        if ROWS.value:
            write_csv(root / "egoclip.csv", ROWS.value)
            size = (root / "egoclip.csv").stat().st_size
            first, again = (alone(timed_load, str(root)) for _ in range(2))
            table = egoclip.load("train", root=folder, store=str(root / "store"))
            figures["csv"] = {
                "rows": len(table),
                "csv_gb": size / 1e9,
                "first_s": first["seconds"],
                "peak_gb": first["peak_gb"],
                "again_s": again["seconds"],
                **drawn(table),
            }
            print_row("csv", figures["csv"])
        if MAPPED_ROWS.value:
            began = time.perf_counter()
            table = ClipTable.write(root / "large.arrow", parts(MAPPED_ROWS.value), root / "store")
            written = time.perf_counter() - began
            opened = alone(timed_open, str(root / "large.arrow"))
            figures["mapped"] = {"rows": len(table), "write_s": written, "again_s": opened["seconds"], **drawn(table)}
            print_row("mapped", figures["mapped"])
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=1) + "\n")


def print_row(name: str, figures: dict[str, Any]) -> None:
    print(f"{name:>7}: " + "  ".join(f"{key} {value:,.4g}" for key, value in figures.items()), flush=True)


def alone(function: Any, *arguments: Any) -> Any:
    """What the function gives in a fresh process."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def timed_load(root: str) -> dict[str, float]:
    """Seconds of a load, and the most memory the process held."""
    began = time.perf_counter()
    egoclip.load("train", root=root, store=f"{root}/store")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def timed_open(path: str) -> dict[str, float]:
    """Seconds to open a saved table and read its last row."""
    began = time.perf_counter()
    table = ClipTable.open(path)
    table.row(len(table) - 1)
    return {"seconds": time.perf_counter() - began}


def drawn(table: ClipTable) -> dict[str, float]:
    """The worst of the workers: memory of its own that the table cost, and microseconds a row."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(WORKERS.value, context) as pool:
        data = pickle.dumps(table)
        jobs = [pool.submit(draw, data, seed, DRAWS.value) for seed in range(WORKERS.value)]
        own, micros = zip(*(job.result() for job in jobs), strict=True)
    return {"pickle_bytes": len(data), "own_mb": max(own), "row_us": max(micros)}


def draw(data: bytes, seed: int, count: int) -> tuple[float, float]:
    """Draws rows as a loader's worker does; (megabytes of its own that this cost, microseconds a row)."""
    before = own_memory()
    table = pickle.loads(data)
    rows = np.random.default_rng(seed).integers(0, len(table), count).tolist()
    began = time.perf_counter()
    for row in rows:
        for name in ("video", "start", "end", "texts"):
            table.cell(row, name)
    micros = (time.perf_counter() - began) / count * 1e6
    return (own_memory() - before) / 1e6, micros


def own_memory() -> int:
    """Bytes that this process shares with no other and with no file."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not count private memory: there is no Anonymous in smaps_rollup")


def columns(first: int, count: int) -> dict[str, Any]:
    """Clips in the order of their videos, as EgoClip has them; texts of about 40 letters."""
    rng = np.random.default_rng(first)
    words = pa.array(WORDS)
    text = pc.binary_join_element_wise(
        "#C C", *(words.take(pa.array(rng.integers(0, len(WORDS), count))) for _ in range(6)), " "
    )
    time_R = rng.uniform(0, SECONDS - 5, count)
    video = pc.binary_join_element_wise(
        "video-", digits(np.arange(first, first + count) // 400 % VIDEOS), "-4748-8564", ""
    )
    return {
        "video": video,
        "text": text,
        "time": time_R,
        "verb": rng.integers(0, 118, count),
        "noun": rng.integers(0, 582, (count, 2)),
    }


def digits(numbers: np.ndarray) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 8, "0")


def lists(*numbers: np.ndarray) -> pa.Array:
    """Ids as EgoClip writes them: "[1, 2]"."""
    inner = pc.binary_join_element_wise(*(pa.array(column).cast(pa.string()) for column in numbers), ", ")
    return pc.binary_join_element_wise("[", inner, "]", "")


def write_csv(path: Path, rows: int) -> None:
    """A file in EgoClip's format."""
    header = "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text"
    with path.open("w") as file:
        file.write("\t".join([*header.split(), "tag_verb", "tag_noun"]) + "\n")
        for first in range(0, rows, PART):
            count = min(PART, rows - first)
            made = columns(first, count)
            numbers = pa.array(np.arange(first, first + count)).cast(pa.string())
            texts = [pa.array(np.round(made["time"] + shift, 6)).cast(pa.string()) for shift in (1, 0, 2.5)]
            verbs, nouns = lists(made["verb"]), lists(*made["noun"].T)
            fields = [
                numbers,
                made["video"],
                "1200.033333",
                "narration_pass_1",
                numbers,
                *texts,
                made["text"],
                verbs,
                nouns,
            ]
            file.write("\n".join(pc.binary_join_element_wise(*fields, "\t").to_pylist()) + "\n")


def parts(rows: int) -> Iterator[pa.Table]:
    """The same clips as a table, part by part."""
    for first in range(0, rows, PART):
        count = min(PART, rows - first)
        made = columns(first, count)
        yield pa.table(
            {
                "video": made["video"],
                "start": made["time"],
                "end": made["time"] + 2.5,
                "texts": one_text(pa.chunked_array([made["text"]])),
                "group": np.arange(first, first + count) // 20,
            }
        )


if __name__ == "__main__":
    app.run(main)
