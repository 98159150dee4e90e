"""Takes a finished store up again, for the videos that are not in it: those that failed then, and new ones.

Its shards are linked into the working folder and noted in the journal, as a run that has not ended yet leaves them; the
store stays as it is until the new one replaces it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from vidlang.data import folders
from vidlang.data.cutting.inputs import Input
from vidlang.data.cutting.target import LocalTarget, Target
from vidlang.data.cutting.work import Work
from vidlang.data.stores.header import read_header
from vidlang.data.stores.record_writer import stored_bytes

MARK, JOURNAL = "reopened", "journal.jsonl"


def is_wanted(target: Target, *, retry_failed: bool) -> bool:
    """Whether there is a finished store to go on with, rather than a run."""
    if not retry_failed or not isinstance(target, LocalTarget):
        return False
    target.mend()
    if not (target.path / "store.json").is_file():
        return False
    work = target.work
    if not folders.is_begun(work) or (work / MARK).exists():
        return True
    # A run that is to replace the store is another matter, but for one that was killed before it did anything.
    return not (work / JOURNAL).exists() and not any((work / "spool").glob("*"))


def check(target: LocalTarget, videos: list[Input], settings: Mapping[str, Any], layout: str) -> None:
    """Raises unless the store is one that can be gone on with so, and there is something to do."""
    place, header = str(target.path), read_header(target.path)
    if header["kind"] != "records" or layout != "records":
        raise ValueError(
            f"a finished store is gone on with in the layout 'records' only; cut {place!r} with --overwrite"
        )
    now = json.loads(json.dumps(dict(settings), default=str))
    if header["settings"] != now:
        names = [name for name in {**header["settings"], **now} if header["settings"].get(name) != now.get(name)]
        raise ValueError(f"{place!r} was cut with other settings ({', '.join(names)}); cut it anew with --overwrite")
    given, there = {video.name for video in videos}, {row["video"] for row in _rows(target.path)}
    if gone := sorted(there - given):
        raise ValueError(f"{place!r} holds videos that are not given, {gone[0]!r} first; cut it anew with --overwrite")
    if given == there:
        raise ValueError(f"{place!r} holds all {len(given)} videos; there is none to try again")


def fill(work: Work) -> None:
    """Makes the store that is there what this run has done."""
    (work.root / MARK).touch()
    if (work.root / JOURNAL).exists():  # all at once, and last
        return
    for name in read_header(Path(work.target.path))["shards"]:
        (work.store / name).unlink(missing_ok=True)
        try:
            os.link(Path(work.target.path) / name, work.store / name)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(Path(work.target.path) / name, work.store / name)
    work.forget(_lines(work))


def _lines(work: Work) -> Iterator[dict[str, Any]]:
    """What the journal would say of the store's shards."""
    path, numbers = Path(work.target.path), {video.name: n for n, video in enumerate(work.videos)}
    rows = _rows(path)
    for name, records in read_header(path)["shards"].items():
        of_shard: list[dict[str, Any]] = []
        while sum(row["chunks"] for row in of_shard) < records:
            of_shard.append(next(rows))
        yield {
            "numbers": [numbers[row["video"]] for row in of_shard],
            "files": {name: (path / name).stat().st_size},
            "records": records,
            "stored": stored_bytes(path / name),
            "rows": [{key: value for key, value in row.items() if key != "first_record"} for row in of_shard],
        }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pa.memory_map(str(path / "index.arrow")) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield from reader.get_batch(number).to_pylist()
