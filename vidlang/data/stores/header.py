"""store.json: what a store is, and whether it is the one that its reader expects.

Its entries: `format_version`; `kind` ("records" where it is not said, "chunk_files", "videos", "images"); `videos`, how
many there are; `content_hash`, equal for equal content wherever it lies; `settings` it was made with; `shards`, file
name to number of records, in order; `index` (and of whole videos `times`), length and SHA-256 of the table of that
name; where chunks are files, `root`, the folder that their paths start from (from the store's own, or absolute), and
`layout`; and where somebody else cut them, `cut_seconds` from the start of a chunk to that of the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from vidlang.core.config import did_you_mean
from vidlang.data.failures import StoreAway
from vidlang.data.stores.remote import Folder, open_folder

FORMAT_VERSION = 1
KINDS = ("records", "chunk_files", "videos", "images")


def read_header(folder: Folder | Path) -> dict[str, Any]:
    """What store.json in a folder says; ValueError when the folder is not a store that can be read."""
    folder = folder if isinstance(folder, Folder) else open_folder(folder)
    where = str(folder)
    try:
        if not folder.exists():
            raise ValueError(f"there is no chunk store at {where!r}: no such folder; make one with launch.precut")
        text = folder.read("store.json").decode()
    except FileNotFoundError:
        raise ValueError(f"{where!r} is not a chunk store: it has no store.json; make one with launch.precut") from None
    except OSError as error:
        raise StoreAway(f"the chunk store {where!r} cannot be reached: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the chunk store {where!r} is damaged: store.json cannot be read") from error
    return parse_header(text, where)


def parse_header(text: str, where: str) -> dict[str, Any]:
    """What store.json says; ValueError when this code cannot read it or it is damaged."""
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the chunk store {where!r} is damaged: store.json cannot be read") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the chunk store {where!r} has format version {version}, this vidlang reads {FORMAT_VERSION}; "
            "precut the videos again"
        )
    kind = header.setdefault("kind", "records")
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise ValueError(f"the chunk store {where!r} is of kind {kind!r}{hint}; known are {', '.join(KINDS)}")
    header.setdefault("shards", {})
    for problem in _problems(header):
        raise ValueError(f"the chunk store {where!r} is damaged: store.json {problem}")
    return header


def _problems(header: dict[str, Any]) -> list[str]:
    """What is wrong with the entries of store.json that reading relies on."""
    found = []
    for name, kind in (("videos", int), ("content_hash", str), ("settings", dict), ("shards", dict)):
        if not isinstance(header.get(name), kind):
            found.append(f"has no good entry {name!r}")
    if not found:
        for name, length in header["shards"].items():
            # A name is joined to the folder: it must not lead out of it.
            if PurePosixPath(name).name != name or name in ("", "..") or type(length) is not int or length < 0:
                found.append(f"names a shard {name!r} of {length!r} records")
        if (header["kind"] == "records") > bool(header["shards"]):
            found.append("names no shard")
    for name, kind in (("root", str), ("layout", str), ("index", dict), ("times", dict)):
        if not isinstance(header.get(name, kind()), kind):
            found.append(f"has no good entry {name!r}")
    seconds = header.get("cut_seconds", 1)
    if type(seconds) not in (int, float) or not 0 < seconds < 1e6:
        found.append(f"says that chunks were cut every {seconds!r} seconds")
    # It becomes part of a file's name in the cache.
    for name in ("index", "times"):
        if not found and name in header and not re.fullmatch("[0-9a-f]{64}", str(header[name].get("sha256"))):
            found.append(f"has no good checksum of {name}.arrow")
    return found


def check_expected(header: Mapping[str, Any], expect: Mapping[str, Any], where: str) -> None:
    """Raises, in one sentence, unless the store is as its reader expects."""
    differing = []
    for name, value in expect.items():
        place = header if name in ("format_version", "kind", "content_hash", "layout") else header["settings"]
        if name not in place:
            hint = did_you_mean(name, place)
            differing.append(f"it says nothing of {name!r}{hint}, {value!r} was expected")
        elif not _same(place[name], value):
            differing.append(f"its {name} is {place[name]!r}, {value!r} was expected")
    if differing:
        raise ValueError(
            f"the chunk store {where!r} is not the one that was asked for: {'; '.join(differing)}; name another store, "
            "or change what is expected of it"
        )


def _same(found: Any, expected: Any) -> bool:
    """Equal, also where JSON made a string of a fraction or a list of a tuple."""
    if isinstance(expected, Mapping):
        return isinstance(found, dict) and all(
            name in found and _same(found[name], expected[name]) for name in expected
        )
    if isinstance(expected, tuple | list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(expected, Fraction) or (isinstance(found, str) and isinstance(expected, int | float)):
        try:
            return Fraction(found) == Fraction(expected)
        except (ValueError, TypeError, ZeroDivisionError):
            return False
    return bool(found == expected)
