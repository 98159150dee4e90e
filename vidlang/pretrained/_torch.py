"""The files that PyTorch writes: zip archives (since 1.6, and TorchScript's), and what it wrote before.

Both hold pickles, which `_pickle` reads without running anything, and beside them numbers, which are mapped into memory
where they lie: members of such an archive are stored as they are, never packed. Code in a TorchScript archive stays
unread; its modules are only the attributes that they have.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidlang.pretrained._known import Fields, Refused, Storage, storage_of
from vidlang.pretrained._pickle import load
from vidlang.pretrained._safetensors import Entry

ZIP = b"PK\x03\x04"
# What a file from before the archives begins with: a pickled number, then the version of what follows.
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
# Modules that a TorchScript archive may have, shared ones counted wherever they are.
MOST_MODULES = 100_000


def read(path: Path, skip: Sequence[str] = ()) -> Any:
    """What a file holds: plain values, and entries for tensors. skip: as of `_pickle.load`."""
    try:
        with path.open("rb") as file:
            first = file.read(4)
        if first == ZIP:
            return _read_archive(path, skip)
        if first[:1] == b"\x80":
            return _read_old(path, skip)
        raise Refused(
            f"is no file of PyTorch's: it begins with {first!r}, neither an archive nor a pickle; fetch it again"
        )
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except Refused as error:
        raise ValueError(f"{path} {error}") from None


def _read_archive(path: Path, skip: Sequence[str]) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(path, {info.filename: info for info in archive.infolist()}, skip)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise Refused(f"is no whole archive ({error}); it is cut off or damaged, fetch it again") from None


def _read_members(path: Path, members: dict[str, zipfile.ZipInfo], skip: Sequence[str]) -> Any:
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused("is an archive without one data.pkl; it is none of PyTorch's, fetch it again")
    root, size = roots[0], path.stat().st_size
    with path.open("rb") as file:

        def place(name: str) -> tuple[int, int]:
            """Where a member's bytes begin, and how many there are."""
            if (info := members.get(root + name)) is None:
                raise Refused(f"lacks its part {name!r}; it is cut off or damaged, fetch it again")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise Refused(f"has its part {name!r} packed, which PyTorch never does; fetch it again")
            file.seek(info.header_offset)
            head = file.read(30)
            if len(head) < 30 or head[:4] != ZIP:
                raise Refused(f"has no part {name!r} where it says; it is cut off or damaged, fetch it again")
            begin = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
            if begin + info.file_size > size:
                raise Refused(f"has a part {name!r} that goes beyond its end; it is cut off, fetch it again")
            return begin, info.file_size

        def content(name: str) -> bytes:
            begin, length = place(name)
            file.seek(begin)
            return file.read(length)

        if root + "byteorder" in members and (order := content("byteorder")) != b"little":
            raise Refused(f"has numbers whose bytes are in the order {order[:20]!r}; little is read, save it again")

        def storage(found: Sequence[Any]) -> Storage:
            begin, length = place(f"data/{found[2]}")
            return storage_of(found[1], found[4], path, begin, length)

        script = root + "constants.pkl" in members
        whole = load(io.BytesIO(content("data.pkl")), storage, script=script, skip=skip)
    return _state_of(whole) if isinstance(whole, Fields) and script else whole


def _state_of(script: Fields) -> dict[str, Any]:
    """The attributes of a TorchScript module and of all modules in it, by their names with dots."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, int, Fields]] = [("", 0, script)]
    for _ in range(MOST_MODULES):
        if not waiting:
            return found
        prefix, depth, module = waiting.pop()
        if depth > 64:
            break
        for name, value in module.items():
            if isinstance(value, Fields):
                waiting.append((f"{prefix}{name}.", depth + 1, value))
            elif isinstance(value, Entry) or not prefix:
                found[prefix + name] = value
    raise Refused("has modules in modules without end; it is damaged, fetch it again")


def _read_old(path: Path, skip: Sequence[str]) -> Any:
    """Five pickles (a number, a version, the machine, the object, names of storages), then the storages' numbers."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
        size = len(bytes_)

        def next_pickle(storage: Callable[[Sequence[Any]], Storage] = _no_storage) -> Any:
            return load(bytes_, storage, skip=skip)  # type: ignore[arg-type]  # it reads as a file does

        try:
            magic = next_pickle()
        except Refused as error:
            raise Refused(f"{error}; it is a pickle, but none of PyTorch's") from None
        if magic != MAGIC or (version := next_pickle()) != VERSION:
            what = f"version {version!r}" if magic == MAGIC else "the wrong magic number"
            raise Refused(f"is a pickle with {what}, and none that PyTorch wrote; save its state dict with torch.save")
        machine = next_pickle()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise Refused("was written where the bytes of numbers are in another order; save it again")
        start, claimed = bytes_.tell(), {}

        def claim(found: Sequence[Any]) -> Storage:
            if len(found) > 5 and found[5] is not None:
                raise Refused("has storages that are views of others, as before PyTorch 0.4; save it again")
            claimed[found[2]] = storage_of(found[1], found[4], path, 0, size)
            return claimed[found[2]]

        next_pickle(claim)
        names = next_pickle()
        if not isinstance(names, list) or set(names) != set(claimed):
            raise Refused("lacks storages that its tensors are parts of; it is damaged, fetch it again")
        places: dict[Any, Storage] = {}
        for name in names:
            head = bytes_.read(8)
            begin, room = bytes_.tell(), claimed[name].size
            if len(head) < 8 or begin + room > size:
                raise Refused(f"ends before the numbers of its storage {name!r}; it is cut off, fetch it again")
            dtype = claimed[name].dtype
            if int.from_bytes(head, "little") * (1 if dtype is None else dtype.itemsize) != room:
                raise Refused(f"says two sizes of its storage {name!r}; it is damaged, fetch it again")
            places[name] = Storage(path, dtype, begin, room)
            bytes_.seek(begin + room)
        bytes_.seek(start)
        return next_pickle(lambda found: places[found[2]])


def _no_storage(found: Sequence[Any]) -> Storage:
    raise Refused("names storages before it says what it holds; it is damaged, fetch it again")
