"""Somebody's own video files as tables of clips: each whole, or cut into parts.

An H.264 MP4 stays where it is, and clips of it are decoded at random: what has to be known of its frames is made into
an index of it (`data.stores.adopt`). Any other file could only be decoded from its start for every clip, which for a
film takes longer than decoding is given. So it is first cut into chunks (`data.precut`), once from start to end. Index
and chunks lie in a folder that goes when the work is done. A picture is a video of one frame, shown for a second.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.container import map_file
from vidlang.data.cutting.inputs import Input, find_inputs
from vidlang.data.encode import EncodeSettings
from vidlang.data.failures import BrokenVideo
from vidlang.data.mp4 import NotIndexed, read_index
from vidlang.data.precut import Failure, PrecutSettings, Progress, precut
from vidlang.data.stores.adopt import NothingAdopted, adopt
from vidlang.data.stores.images import SUFFIXES as PICTURES

# Chunks that are read once: encoded in little time rather than into few bytes.
QUICK = EncodeSettings(preset="veryfast")
Refused = list[tuple[str, str]]


class NoneReadable(ValueError):
    """None of some videos can be used; `refused` says why of each."""

    def __init__(self, refused: Refused) -> None:
        name, why = refused[0]
        super().__init__(f"none of {len(refused)} video(s) can be read; the first, {name!r}: {why}")
        self.refused = refused


@dataclass(frozen=True)
class Parts:
    """How a video is cut: into `count` equal parts, or where `seconds` is above 0, into parts of so many seconds."""

    count: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.seconds < math.inf or (self.count > 1 and self.seconds):
            raise ValueError(
                f"a video is cut into {self.count} equal parts or into parts of {self.seconds:g} seconds; give one of "
                "them, above 0"
            )

    def of(self, duration: float) -> list[tuple[float, float]]:
        """(start, end) of each part."""
        if self.seconds:
            count = max(1, math.ceil(duration / self.seconds - 1e-6))
            edges = np.minimum(np.arange(count + 1) * self.seconds, duration)
        else:
            edges = np.linspace(0.0, duration, self.count + 1)
        return list(itertools.pairwise(edges.tolist()))


@dataclass(frozen=True)
class OwnVideos:
    """Clips of video files, a table for each way of reading them, and the files that cannot be used: (name, why)."""

    tables: Sequence[ClipTable]
    refused: Refused


def find_videos(path: str | Path) -> list[Input]:
    """A video file, or all in a folder and its folders, by names that are their paths without a suffix."""
    source = Path(path).expanduser()
    if source.is_file():
        return find_inputs([(source.stem, source.resolve())])
    return find_inputs(str(source))


@contextlib.contextmanager
def own_videos(
    videos: Sequence[Input],
    parts: Parts,
    *,
    short_side: int = 288,
    workers: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[OwnVideos]:
    """Clips of these files, as long as the context lasts.

    short_side, workers, progress: of the cutting of files that have to be cut.
    """
    pictures = [video for video in videos if Path(video.path).suffix.lower() in PICTURES]
    quick, slow, refused = _sorted([video for video in videos if video not in pictures])
    with tempfile.TemporaryDirectory(prefix="vidlang_") as folder:
        stores, place = [], Path(folder)
        # Files that were cut can be decoded for sure, so what is wrong with others stops nothing.
        if slow:
            settings = PrecutSettings(short_side=short_side + short_side % 2, encode=QUICK)
            stores += _cut(slow, place / "cut", settings, refused, workers, progress)
        if quick:
            stores += _indexed(quick, place, "videos", refused)
        if pictures:
            stores += _indexed(pictures, place, "images", refused)
        if not stores:
            raise NoneReadable(refused)
        yield OwnVideos([_table(store, parts) for store in stores], refused)


def _sorted(videos: Sequence[Input]) -> tuple[list[Input], list[Input], Refused]:
    """(files that can be read at random, those that cannot, those that are broken)."""
    quick, slow, refused = list[Input](), list[Input](), Refused()
    for video in videos:
        try:
            read_index(map_file(Path(video.path)))
            quick.append(video)
        except NotIndexed:
            slow.append(video)
        except BrokenVideo as error:
            refused.append((video.name, str(error)))
    return quick, slow, refused


def _indexed(videos: Sequence[Input], place: Path, layout: str, refused: Refused) -> list[Path]:
    """A store of files as they are."""
    place = place / layout
    for video in videos:
        # A folder of links, so that nothing beside the files is looked at, and whatever a video's suffix.
        suffix = ".mp4" if layout == "videos" else Path(video.path).suffix.lower()
        link = place / "files" / f"{video.name}{suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(video.path).resolve())
    try:
        report = adopt(place / "files", place / "index", layout)
    except NothingAdopted as error:
        report = error.report
    refused += [(name, why) for name, _, why in report.refused]
    return [place / "index"] if report.videos else []


def _cut(
    videos: Sequence[Input],
    store: Path,
    settings: PrecutSettings,
    refused: Refused,
    workers: int,
    progress: Callable[[Progress], None],
) -> list[Path]:
    """A store of chunks."""
    failures: list[Failure] = []

    def told(news: Progress) -> None:
        failures[:] = news.failures
        progress(news)

    try:
        precut([(video.name, video.path) for video in videos], store, settings, workers=workers, progress=told)
    except ValueError:
        if len(failures) < len(videos):
            raise
    refused += [(failure.name, failure.reason) for failure in failures]
    return [store] if len(failures) < len(videos) else []


def _table(place: Path, parts: Parts) -> ClipTable:
    store = open_store(place)
    rows = [(name, *part) for name in store.videos for part in parts.of(store.info(name).duration)]
    video, start, end = map(list, zip(*rows, strict=True))
    columns = {"video": video, "start": start, "end": end, "texts": [[] for _ in rows]}
    return ClipTable.from_columns(columns, store=str(place))
