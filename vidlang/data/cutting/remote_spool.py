"""A spool on an object store, for workers that share no file system: entries go up whole, and come down when needed.

Object stores cannot rename, so an entry counts from when its cut.json is there, which goes up last.
"""

from __future__ import annotations

import json
import posixpath
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidlang.data.cutting import spool
from vidlang.data.cutting.assembling import Batch, write_shard
from vidlang.data.cutting.inputs import connect
from vidlang.data.cutting.spool import CutJob
from vidlang.data.cutting.target import RemoteTarget


@dataclass(frozen=True)
class RemoteSpool:
    """The entries below an address."""

    address: str

    def has(self, number: int) -> bool:
        """Whether a video is there, whole."""
        system, root = connect(self.address)
        return bool(system.exists(f"{root}/{number:07d}/cut.json"))

    def put(self, local: Path, number: int) -> None:
        """Copies an entry of a local spool up."""
        system, root = connect(self.address)
        entry = local / f"{number:07d}"
        for file in [*sorted(entry.glob("chunks/*")), entry / "cut.json"]:
            system.put_file(str(file), f"{root}/{number:07d}/{file.relative_to(entry).as_posix()}")

    def get(self, number: int, local: Path, *, chunks: bool) -> None:
        """Copies an entry into a local spool; without its chunks it is enough to plan by."""
        system, root = connect(self.address)
        folder = local / f"{number:07d}"
        (folder / "chunks").mkdir(parents=True, exist_ok=True)
        system.get_file(f"{root}/{number:07d}/cut.json", str(folder / "cut.json"))
        outcome = spool.load(local, number, verify=False)
        if chunks and outcome is not None and outcome.row is not None:
            for place in range(outcome.row["chunks"]):
                name = f"chunks/{place}.mp4"
                system.get_file(f"{root}/{number:07d}/{name}", str(folder / name))

    def numbers(self) -> list[int]:
        """The videos that are there, whole."""
        system, root = connect(self.address)
        system.invalidate_cache()
        found = system.find(root) if system.exists(root) else []
        whole = (posixpath.split(path)[0] for path in found if path.endswith("/cut.json"))
        return sorted(int(posixpath.basename(folder)) for folder in whole)

    def line(self, shard: int) -> dict[str, Any]:
        """What is to be noted of a shard that was written."""
        system, root = connect(self.address)
        return json.loads(system.cat_file(f"{root}/lines/{shard}.json"))

    def drop(self, number: int) -> None:
        """Deletes one entry."""
        system, root = connect(self.address)
        if system.exists(f"{root}/{number:07d}"):
            system.rm(f"{root}/{number:07d}", recursive=True)

    def remove(self) -> None:
        """Deletes all of it."""
        system, root = connect(self.address)
        if system.exists(root):
            system.rm(root, recursive=True)

    def cut(self, job: CutJob, cut: Any) -> None:
        """Cuts a video into a spool of this machine, and copies it up."""
        if self.has(job.number):
            return
        with tempfile.TemporaryDirectory() as folder:
            cut(replace(job, spool=Path(folder)))
            self.put(Path(folder), job.number)

    def write(self, batch: Batch, output: str) -> None:
        """Writes a shard on this machine, and copies it to the store and its line to the spool."""
        with tempfile.TemporaryDirectory() as folder:
            local, target = Path(folder) / "spool", RemoteTarget(output, Path(folder))
            target.store.mkdir()
            for number in batch.numbers:
                self.get(number, local, chunks=True)
            line = write_shard(local, target.store, batch)
            shutil.rmtree(local)
            for name in line["files"]:
                target.keep(name)
            system, root = connect(self.address)
            system.pipe_file(f"{root}/lines/{batch.shard}.json", json.dumps(line).encode())
