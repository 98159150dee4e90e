"""Where a finished store goes: a folder of this machine, or an object store.

A local store gets its name when it is complete. Object stores cannot rename, so there the shards go up one by one and
store.json, which makes a folder a store, goes last.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
from collections.abc import Collection
from pathlib import Path

from vidlang.data import folders
from vidlang.data.cutting.inputs import connect
from vidlang.data.stores.record_writer import sync
from vidlang.data.stores.remote import is_address

# The files of a store beside its shards and its header.
BESIDE = ("index.arrow", "dataset_info.json", "features.json", "failed.jsonl")


class LocalTarget:
    """A folder, built in a folder beside it."""

    def __init__(self, path: Path, work: Path | None) -> None:
        self.path = folders.real(path)
        self.work = work or folders.partial_of(self.path)
        self.store = self.work / "store"

    def check(self, overwrite: bool) -> None:
        """Raises unless a store may be written here."""
        self.mend()
        if not self._same_disk():
            folders.check_ours(folders.partial_of(self.path))
        check_target(self.path, overwrite)

    def mend(self) -> None:
        """Makes good what a kill at the very end left."""
        for aside in (self.work, folders.partial_of(self.path)):
            folders.recover(self.path, aside)
        if self._is_finished():
            folders.clear(self.work)

    def _is_finished(self) -> bool:
        """Whether the working folder is that of a run which was killed when only cleaning up was left."""
        header, new = self.path / "store.json", self.store / "store.json"
        if not folders.is_begun(self.work) or not header.exists():
            return False
        return not self.store.exists() or (new.exists() and new.read_bytes() == header.read_bytes())

    def _same_disk(self) -> bool:
        place = os.path.abspath(self.path.parent)
        while not os.path.exists(place):
            place = os.path.dirname(place)
        return os.stat(place).st_dev == os.stat(self.work).st_dev

    def here(self) -> list[Path]:
        """The folder of the store on this machine, if it lies there."""
        return [self.path]

    def prepare(self, keep: Collection[str]) -> None:
        """Makes room for the first file of the store; here the old store stays until the new one is whole."""

    def has(self, name: str, size: int) -> bool:
        """Whether a file or folder of the store is there; of a file, with so many bytes."""
        path = self.store / name
        return path.is_dir() or (path.is_file() and path.stat().st_size == size)

    def keep(self, name: str) -> None:
        """Brings a file of the store to where it stays."""

    def fetch(self, name: str) -> Path:
        """A file of the store as one of this machine."""
        return self.store / name

    def finish(self) -> None:
        """Makes the folder that was built the store."""
        if self._same_disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folders.install(self.store, self.path, self.work)
            return
        with folders.built_aside(self.path) as near:
            shutil.copytree(self.store, near, dirs_exist_ok=True)
            for path in near.rglob("*"):
                sync(path)


class RemoteTarget:
    """A folder of an object store; files are made in a local one first."""

    def __init__(self, address: str, work: Path) -> None:
        self.path, self.work = address.rstrip("/"), work
        self.store = work / "store"
        self._system, self._root = connect(self.path)

    def check(self, overwrite: bool) -> None:
        """Raises unless a store may be written here; clears away what a kill at the very end left."""
        self._system.invalidate_cache()
        header = self._header()
        if header is None:
            begun = folders.is_begun(self.work)
            if not begun and self._system.exists(self._root) and self._system.ls(self._root, detail=False):
                raise ValueError(_other(self.path))
            return
        sent = self.work / "sent.json"
        if sent.exists() and sent.read_bytes() == header:
            folders.clear(self.work)
        if not overwrite:
            raise ValueError(_exists(self.path))

    def here(self) -> list[Path]:
        """The folder of the store on this machine, if it lies there."""
        return [Path(self._root)] if self.path.startswith(("file://", "local://")) else []

    def prepare(self, keep: Collection[str]) -> None:
        """Deletes an old store, but for the files to keep: the new one has the same names. Its header goes last."""
        if (header := self._header()) is None:
            return
        old = [name for name in json.loads(header).get("shards", {}) if "/" not in name]
        for name in [*old, *BESIDE, "store.json"]:
            if name not in keep and self._system.exists(self._place(name)):
                self._system.rm_file(self._place(name))
        self._system.invalidate_cache()

    def _header(self) -> bytes | None:
        place = self._place("store.json")
        return self._system.cat_file(place) if self._system.exists(place) else None

    def has(self, name: str, size: int) -> bool:
        """Whether a file is there with so many bytes."""
        place = self._place(name)
        return bool(self._system.exists(place)) and self._system.info(place)["size"] == size

    def keep(self, name: str) -> None:
        """Copies a file up and removes it here."""
        size = (self.store / name).stat().st_size
        for folder in self.here():
            folder.mkdir(parents=True, exist_ok=True)
        self._system.put_file(str(self.store / name), self._place(name))
        self._system.invalidate_cache()
        if not self.has(name, size):
            raise OSError(f"{self.path}/{name} is not there as it was sent")
        (self.store / name).unlink()

    def fetch(self, name: str) -> Path:
        """A file of the store as one of this machine."""
        self._system.get_file(self._place(name), str(self.store / name))
        return self.store / name

    def finish(self) -> None:
        """Copies what is left up, the header last."""
        shutil.copyfile(self.store / "store.json", self.work / "sent.json")
        for path in sorted(self.store.iterdir(), key=lambda path: path.name == "store.json"):
            self.keep(path.name)

    def _place(self, name: str) -> str:
        return posixpath.join(self._root, name)


Target = LocalTarget | RemoteTarget


def open_target(output: str | Path, work: str | Path | None) -> Target:
    """The place for a store; `work` is the folder for what is unfinished, beside a local store if it is not given."""
    if not is_address(str(output)):
        return LocalTarget(Path(output), Path(work) if work else None)
    if work is None:
        raise ValueError(f"a store at {str(output)!r} is made on this machine first: name a folder for it with --work")
    return RemoteTarget(str(output), Path(work))


def check_target(path: Path, overwrite: bool) -> None:
    """Raises unless a store may be written at `path`; only a store is ever overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "store.json").is_file():
        raise ValueError(_other(str(path)))
    if not overwrite:
        raise ValueError(_exists(str(path)))


def _exists(path: str) -> str:
    return f"there is a complete chunk store at {path!r} already; use it, or replace it with --overwrite"


def _other(path: str) -> str:
    return f"{path!r} exists and is not a chunk store; choose another place or remove it"
