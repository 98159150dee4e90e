"""Where the files of a store lie: a local folder, or a place that fsspec reads (gs://, s3://, memory://, ...).

Both answer the same few questions, and every failure is an OSError, so that what reads a store can tell a missing file
(FileNotFoundError) from a disk or a network that failed (any other).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The file systems that need a package of their own, and its name.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"}
CACHE_BYTES = 10 << 30
_used: set[Path] = set()


class LocalFolder:
    """A folder of this machine; names lie below it."""

    remote = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether it is a folder."""
        return self.path.is_dir()

    def occupied(self) -> bool:
        """Whether anything lies in it: where a disk was taken away, its folder is left behind, empty."""
        with os.scandir(self.path) as entries:
            return any(entries)

    def names(self) -> list[str]:
        """All files below it, as paths from it, sorted."""
        found = [Path(folder, name) for folder, _, files in os.walk(self.path) for name in files]
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.path / name).read_bytes()

    def content(self, name: str) -> bytes | memoryview:
        """A whole file, read when touched."""
        with open(self.path / name, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def state(self, name: str) -> tuple[int, int]:
        """Length of a file in bytes, and when it was last changed in nanoseconds."""
        found = (self.path / name).stat()
        return found.st_size, found.st_mtime_ns

    def local(self, name: str) -> Path:
        """The file as one of this machine."""
        return self.path / name


class RemoteFolder:
    """A place that fsspec reads; the connection is opened when first used, in each process anew."""

    remote = True

    def __init__(self, address: str) -> None:
        self.path = address.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def __str__(self) -> str:
        return self.path

    def exists(self) -> bool:
        """Whether anything lies there; object stores know no empty folders."""
        return self.occupied()

    def occupied(self) -> bool:
        """Whether anything lies there."""
        with self._system("") as (system, path):
            # What was listed before the network failed must not stand in for what is there now.
            system.invalidate_cache()
            return bool(system.exists(path) and system.ls(path, detail=False))

    def names(self) -> list[str]:
        """All files below it, as paths from it, sorted."""
        with self._system("") as (system, path):
            system.invalidate_cache()
            return sorted(found[len(path) :].lstrip("/") for found in system.find(path))

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._system(name) as (system, path):
            return system.cat_file(path)

    def content(self, name: str) -> bytes | memoryview:
        """A whole file."""
        return self.read(name)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` of a file."""
        with self._system(name) as (system, path):
            return system.cat_file(path, start=start, end=end)

    def state(self, name: str) -> tuple[int, int]:
        """Length of a file in bytes, and 0: what is said of times differs between object stores."""
        with self._system(name) as (system, path):
            system.invalidate_cache()
            return int(system.info(path)["size"]), 0

    def fetch(self, name: str, target: Path) -> None:
        """Copies a file to this machine; `target` is there when it is complete."""
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(dir=target.parent, prefix=target.name)
        os.close(handle)
        try:
            with self._system(name) as (system, path):
                system.get_file(path, half)
            os.replace(half, target)
        finally:
            if os.path.exists(half):
                os.remove(half)

    @contextlib.contextmanager
    def _system(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system with the path of a file in it; whatever it raises becomes an OSError."""
        # Clients of object stores have threads, which a forked child does not inherit.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_connect(self.path))
        _, system, root = self._opened
        try:
            yield system, f"{root}/{name}" if name else root
        except OSError:
            raise
        except Exception as error:  # each client has errors of its own
            raise OSError(f"{self.path}/{name} cannot be read: {error}") from error


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | Path) -> Folder:
    """The folder at a local path or at an address such as gs://bucket/store."""
    if isinstance(path, str) and is_address(path):
        return RemoteFolder(path)
    return LocalFolder(path)


def is_address(path: str) -> bool:
    """Whether a path names a place that is not on this machine."""
    return re.match(r"[a-z][a-z0-9+.-]+://", path) is not None


def cache_folder() -> Path:
    """Where what was fetched is kept: $VIDLANG_CACHE, or ~/.cache/vidlang."""
    return Path(os.environ.get("VIDLANG_CACHE") or Path.home() / ".cache" / "vidlang")


def kept_file(folder: RemoteFolder, name: str, sha256: str, size: int | None) -> Path:
    """A file of a remote store in the cache, fetched where it is not there, by its content.

    Of what is kept, that which nobody has asked for the longest goes when there is more than CACHE_BYTES.
    """
    kept = cache_folder() / f"{sha256}.arrow"
    _used.add(kept)
    if kept.is_file() and kept.stat().st_size == size:
        # Somebody else's cache may be there to be read only; what he uses is his to say.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            os.utime(kept)
    if not kept.is_file() or kept.stat().st_size != size:
        folder.fetch(name, kept)
        _prune(kept.parent)
    return kept


def _prune(cache: Path) -> None:
    """Removes the oldest files of the cache until it is small enough, but none that this process has read."""
    files = []
    for path in cache.iterdir():
        # Other things may lie there, such as the tables of datasets.
        if re.fullmatch(r"[0-9a-f]{64}\.arrow", path.name):
            # Another process may remove it first, in every line here; one that has it mapped keeps what it mapped.
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                files.append((state.st_mtime_ns, state.st_size, path))
    over = sum(size for _, size, _ in files) - CACHE_BYTES
    for _, size, path in sorted(files):
        if over > 0 and path not in _used:
            with contextlib.suppress(PermissionError, FileNotFoundError):
                path.unlink()
                over -= size


def _connect(address: str) -> tuple[Any, str]:
    scheme = address.partition("://")[0]
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = "fsspec" if error.name == "fsspec" else PACKAGES.get(scheme, "")
        mend = f"pip install {package}" if scheme.startswith("http") else "pip install 'vidlang[remote]'"
        raise ValueError(
            f"reading {address!r} needs {f'the package {package}, which' if package else 'a package that'} is not "
            f"installed: {error}; {mend if package else 'install what it names'}"
        ) from error
    except ValueError as error:
        raise ValueError(f"cannot read {address!r}: {error}") from error
    return system, root.rstrip("/")
