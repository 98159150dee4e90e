"""Where a finished store goes: a folder of this machine, or an object store.

A local store gets its name when it is complete. Object stores cannot rename, so there the shards go up one by one and
store.json, which makes a folder a store, goes last.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from vidlang.data import folders
from vidlang.data.cutting.inputs import connect
from vidlang.data.stores.remote import is_address


class LocalTarget:
    """A folder, built in a folder beside it."""

    def __init__(self, path: Path, work: Path | None) -> None:
        self.path, self.work = path, work or folders.partial_of(path)
        self.store = self.work / "store"

    def check(self, overwrite: bool) -> None:
        """Raises unless a store may be written here; mends what a kill at the very end left."""
        folders.recover(self.path, self.work)
        if self._is_finished():
            folders.clear(self.work)
        check_target(self.path, overwrite)

    def _is_finished(self) -> bool:
        """Whether the working folder is that of a run which was killed when only cleaning up was left."""
        begun = (self.work / "run.json").exists()
        return begun and not self.store.exists() and (self.path / "store.json").exists()

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
        folders.install(self.store, self.path, self.work)


class RemoteTarget:
    """A folder of an object store; files are made in a local one first."""

    def __init__(self, address: str, work: Path) -> None:
        self.path, self.work = address.rstrip("/"), work
        self.store = work / "store"
        self._system, self._root = connect(self.path)

    def check(self, overwrite: bool) -> None:
        """Raises unless a store may be written here; an old one stops being one now."""
        if self._system.exists(self._place("store.json")):
            if not overwrite:
                raise ValueError(_exists(self.path))
            self._system.rm(self._root, recursive=True)

    def has(self, name: str, size: int) -> bool:
        """Whether a file is there with so many bytes."""
        place = self._place(name)
        return bool(self._system.exists(place)) and self._system.info(place)["size"] == size

    def keep(self, name: str) -> None:
        """Copies a file up and removes it here."""
        size = (self.store / name).stat().st_size
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
        raise ValueError(f"{str(path)!r} exists and is not a chunk store; choose another place or remove it")
    if not overwrite:
        raise ValueError(_exists(str(path)))


def _exists(path: str) -> str:
    return f"there is a complete chunk store at {path!r} already; use it, or overwrite it"
