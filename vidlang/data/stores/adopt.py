"""Makes a store of a folder that is there already, without touching or copying its files.

Every file is read once: how many frames it really holds, how large they are, and its checksum go into the index, so
that reading needs no file to be opened only to learn its length. H.264 is not decoded for it; `problems` of the store
that is made does. What real folders have wrong with them is mended where that is safe, and told: see probe.py.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from vidlang.data.folders import built_aside
from vidlang.data.stores.images import SUFFIXES as IMAGES
from vidlang.data.stores.index import (
    FILE_SCHEMA,
    INDEX_SCHEMA,
    ROWS_AT_ONCE,
    TIMES_SCHEMA,
    ContentHash,
    IndexWriter,
    stamp,
    write_header,
)
from vidlang.data.stores.probe import Found, Task, probe, probe_record
from vidlang.data.stores.record_reader import RecordError, RecordReader
from vidlang.data.stores.remote import Folder, LocalFolder, RemoteFolder, is_address, open_folder
from vidlang.data.stores.writer import check_target
from vidlang.data.workers.processes import worker_pool

VIDEOS = tuple(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .wmv .ogv .3gp .gif".split())
# Layout: the kind of store it makes.
LAYOUTS = {
    "seconds": "chunk_files",
    "index": "chunk_files",
    "videos": "videos",
    "images": "images",
    "tfds_images": "images",
}


@dataclass
class Adoption:
    """What was made of a folder."""

    videos: int = 0
    # Files that are not of the layout and were left out.
    foreign: list[str] = field(default_factory=list)
    # Videos that were left out: name, kind of failure (failures.KINDS), reason.
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    # Videos that are in the store though something about them is unusual: name, what.
    notes: list[tuple[str, str]] = field(default_factory=list)


def adopt(
    folder: str | Path,
    output: str | Path,
    layout: str,
    *,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
    split: str | None = None,
    cut_seconds: float | None = None,
    overwrite: bool = False,
) -> Adoption:
    """Writes store.json and index.arrow in `output` for the files in `folder`, which stay where they are.

    Layouts: "seconds" (VIDEO.mp4/0.mp4, 15.mp4, ...), "index" (VIDEO/0.mp4, 1.mp4, ...), "videos" (whole files),
    "images" (files in any depth), "tfds_images" (a split of a TFDS dataset in ArrayRecord files, written as
    array_record, with a feature `image`). `cut_seconds` is how far apart chunks begin, where file names and lengths do
    not tell. `progress` is called with a line of text after each video.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    if is_address(str(output)):
        raise ValueError(
            f"an adopted store is written to a folder of this machine, got the address {str(output)!r}; name a local "
            "folder for it, and copy that to where it is wanted"
        )
    source, output = open_folder(folder), Path(output)
    if not source.exists():
        raise ValueError(f"there is no folder {str(source)!r} to adopt")
    check_target(output, overwrite)
    report = Adoption()
    shards: dict[str, int] = {}
    found: Iterable[Found]
    if layout == "tfds_images":
        shards = _tfds_shards(source, split)
        found = _records(source, shards)
    else:
        tasks, report.foreign = _tasks(source, layout, output)
        found = _probed(tasks, workers)
    with built_aside(output) as building:
        writer = _Writer(building, bool(shards), LAYOUTS[layout] == "videos")
        with writer.index:
            cuts = [writer.add(one, report, progress) for one in found]
        writer.close()
        if not report.videos:
            first = f"; the first that was refused: {report.refused[0]}" if report.refused else ""
            message = f"nothing in {str(source)!r} can be adopted with the layout {layout!r}{first}"
            raise NothingAdopted(message, report)
        header: dict[str, Any] = {"root": _root(source, output), "layout": layout, "kind": LAYOUTS[layout]}
        settings = writer.common()
        if LAYOUTS[layout] == "chunk_files":
            header["cut_seconds"] = settings["chunk_seconds"] = _cut_seconds(cuts, cut_seconds, layout)
        if LAYOUTS[layout] == "videos":
            header["times"] = stamp(building / "times.arrow")
        header |= {"shards": shards, "content_hash": writer.content.hexdigest()}
        write_header(building, videos=report.videos, settings=settings, **header)
    return report


class NothingAdopted(ValueError):
    """A folder of which no video can be used; `report` says why of each."""

    def __init__(self, message: str, report: Adoption) -> None:
        super().__init__(message)
        self.report = report


class _Writer:
    """Writes the index, and the times of whole videos beside it, as videos are looked at."""

    def __init__(self, folder: Path, records: bool, times: bool) -> None:
        self.index = IndexWriter(folder, INDEX_SCHEMA if records else FILE_SCHEMA)
        self.content = ContentHash()
        self._first, self._common = 0, {name: Counter[Any]() for name in ("fps", "height", "width")}
        self._last: str | None = None
        self._times: list[Any] = []
        self._times_writer = pa.ipc.new_file(str(folder / "times.arrow"), TIMES_SCHEMA) if times else None

    def add(self, found: Found, report: Adoption, progress: Callable[[str], None] | None) -> float | None:
        """Takes in one video; returns how far apart its chunks begin, where it tells."""
        name, row = found.name, found.row
        if row is not None and name == self._last:
            # They come sorted by name.
            found = Found(name, kind="unsupported", reason="another video has the same name")
            row = None
        if row is None:
            report.refused.append((name, found.kind, found.reason))
        else:
            row = {"video": name, "first_record": self._first, **row}
            self._first += row["chunks"]
            self.index.add(row)
            self.content.add(row)
            for column, counter in self._common.items():
                counter[row[column]] += 1
            report.videos += 1
            report.notes += [(name, note) for note in found.notes]
            self._add_times(found.times)
            self._last = name
        if progress is not None:
            progress(f"{name}: {found.reason or 'adopted'}{''.join(f'; {note}' for note in found.notes)}")
        return found.cut_seconds if row is not None else None

    def _add_times(self, times: Sequence[float] | None) -> None:
        if self._times_writer is not None:
            self._times.append(times)
            if len(self._times) >= ROWS_AT_ONCE:
                self._flush()

    def _flush(self) -> None:
        if self._times_writer is not None and self._times:
            self._times_writer.write_table(pa.table({"times": pa.array(self._times, TIMES_SCHEMA.types[0])}))
            self._times = []

    def close(self) -> None:
        """Ends the tables."""
        self._flush()
        if self._times_writer is not None:
            self._times_writer.close()

    def common(self) -> dict[str, Any]:
        """The numbers that all videos share, as a reader may ask for them."""
        shared = {name: next(iter(counter)) for name, counter in self._common.items() if len(counter) == 1}
        return shared | ({"short_side": min(shared["height"], shared["width"])} if len(shared) == 3 else {})


def _tasks(source: Folder, layout: str, output: Path) -> tuple[list[Task], list[str]]:
    """The videos of a folder, in the order of their names, and the files that belong to none."""
    inside: str | None = None
    if isinstance(source, LocalFolder) and output.resolve().is_relative_to(source.path.resolve()):
        inside = output.resolve().relative_to(source.path.resolve()).as_posix()
    videos: dict[str, list[str]] = {}
    foreign = []
    for name in source.names():
        if inside is not None and name.startswith((f"{inside}/", f"{inside}.partial/")):
            continue
        key = _video_of(PurePosixPath(name), layout)
        if key is None:
            foreign.append(name)
        else:
            videos.setdefault(key, []).append(name)
    address = str(source) if isinstance(source, RemoteFolder) else str(Path(str(source)).resolve())
    tasks = [Task(address, layout, name, videos[key]) for key, name in _names(videos, layout).items()]
    return sorted(tasks, key=lambda task: (task.name, task.files)), foreign


def _names(keys: Iterable[str], layout: str) -> dict[str, str]:
    """What each video is called: its path without the suffix, which those keep that would share a name.

    So precutting names videos. Of a folder only ".mp4" is a suffix, and only where folders are named like files.
    """
    suffixes = {"seconds": (".mp4",), "index": (), "images": IMAGES}.get(layout, VIDEOS)
    paths = {key: PurePosixPath(key) for key in keys}
    short = {key: str(path.with_suffix("")) if path.suffix.lower() in suffixes else key for key, path in paths.items()}
    shared = {name for name, count in Counter(short.values()).items() if count > 1}
    return {key: key if name in shared else name for key, name in short.items()}


def _video_of(path: PurePosixPath, layout: str) -> str | None:
    """What the files of one video have in common of their paths; None for a file that belongs to none."""
    if any(part.startswith(".") for part in path.parts):
        return None  # what file managers and version control leave
    if LAYOUTS[layout] == "chunk_files":
        numbered = path.stem.isascii() and path.stem.isdigit() and path.suffix.lower() == ".mp4"
        return path.parent.as_posix() if numbered and len(path.parts) > 1 else None
    return path.as_posix() if path.suffix.lower() in (IMAGES if layout == "images" else VIDEOS) else None


def _probed(tasks: list[Task], workers: int) -> Iterator[Found]:
    if workers <= 1:
        yield from map(probe, tasks)
        return
    with worker_pool(workers) as pool:
        yield from pool.map(probe, tasks, chunksize=4)


def _tfds_shards(source: Folder, split: str | None) -> dict[str, int]:
    """The shards of a split of a TFDS dataset, in order, and how many records each holds."""
    try:
        splits = {entry["name"]: entry for entry in json.loads(source.read("dataset_info.json"))["splits"]}
        lengths = {name: [int(length) for length in entry["shardLengths"]] for name, entry in splits.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(source)!r} is no TFDS dataset: dataset_info.json cannot be read: {error}") from error
    name = split if split is not None else next(iter(lengths)) if len(lengths) == 1 else ""
    if name not in lengths:
        raise ValueError(
            f"the TFDS dataset {str(source)!r} has the splits {', '.join(lengths)}; name one, got {split!r}"
        )
    files = [file for file in source.names() if f"-{name}.array_record" in file and "/" not in file]
    if len(files) != len(lengths[name]):
        raise ValueError(
            f"the split {name!r} of {str(source)!r} has {len(files)} ArrayRecord files, its dataset_info.json says "
            f"{len(lengths[name])}; TFDS datasets in other file formats must be written anew as array_record"
        )
    return dict(zip(files, lengths[name], strict=True))


def _records(source: Folder, shards: dict[str, int]) -> Iterator[Found]:
    reader = RecordReader(source, shards)
    for number in range(sum(shards.values())):
        try:
            yield probe_record(number, reader.read(number))
        except RecordError as error:
            yield Found(str(number), kind=error.kind, reason=str(error))


def _cut_seconds(told: list[float | None], given: float | None, layout: str) -> float:
    """How far apart chunks begin: as given, or as most videos of more than one chunk tell."""
    counts = Counter(seconds for seconds in told if seconds is not None)
    if given is None and not counts:
        return 1e5  # every video is one chunk
    seconds = counts.most_common(1)[0][0] if given is None else given
    if counts and (len(counts) > 1 or seconds not in counts):
        raise ValueError(
            f"the chunks of the layout {layout!r} begin {', '.join(f'{s:g}' for s in sorted(counts))} s apart in "
            f"different videos{'' if given is None else f', and {given:g} s was given'}; adopt them as several stores"
        )
    return seconds


def _root(source: Folder, output: Path) -> str:
    """Where the files lie, from the store where both move together: inside one another, or side by side."""
    if is_address(str(source)):
        return str(source)
    relative = os.path.relpath(Path(str(source)).resolve(), output.resolve())
    parts = Path(relative).parts
    near = parts.count("..") <= 1 or all(part == ".." for part in parts)
    return relative if near else str(Path(str(source)).resolve())
