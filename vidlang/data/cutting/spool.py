"""The spool: videos that are cut but not in the store yet, each in a folder of its own that appears when it is whole.

    SPOOL/0000012/cut.json          the video's row of the index, or why it failed
    SPOOL/0000012/chunks/0.mp4 ...  its chunks

Any number of processes, on any number of machines with a common file system, may cut into one spool.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidlang.data.cutting.inputs import DiskError, Input, disk, local_copy, writing
from vidlang.data.cutting.video import CutVideo, PrecutSettings, cut_chunks
from vidlang.data.failures import BrokenVideo
from vidlang.data.stores.index import checksum
from vidlang.data.stores.remote import is_address


@dataclass(frozen=True)
class Failure:
    """A video that is not in the store: its file, its name, and why; `kind` sorts reasons as failures.KINDS does.

    Here there is one kind more, "killed": cutting it twice ended the process that did.
    """

    file: str
    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of one video: its row of the index and the bytes of its chunks, or a failure."""

    row: dict[str, Any] | None
    size: int
    failure: Failure | None

    @property
    def seconds(self) -> float:
        """How long the video lasts."""
        return self.row["duration"] if self.row else 0.0


@dataclass(frozen=True)
class CutJob:
    """One video to be cut, and what it is called in the spool."""

    number: int
    video: Input
    settings: PrecutSettings
    spool: Path

    def absolute(self) -> CutJob:
        """The same job for a process that works in another folder."""
        path = self.video.path if is_address(self.video.path) else os.path.abspath(self.video.path)
        return replace(self, video=replace(self.video, path=path), spool=self.spool.resolve())


def chunk_row(video: CutVideo, checksums: Sequence[str]) -> dict[str, Any]:
    """A video's row of the index, but for the number of its first record."""
    counts = [int(count) for count in video.chunk_frames]
    if not counts or len(counts) != len(checksums) or min(counts) < 1:
        raise ValueError(
            f"video {video.name!r} has {len(checksums)} chunks of {counts} frames; "
            "it needs at least one chunk, and a frame or more in each"
        )
    return {
        "video": video.name,
        "chunks": len(counts),
        "fps": float(video.fps),
        "width": int(video.width),
        "height": int(video.height),
        "frames": sum(counts),
        "duration": float(sum(counts) / Fraction(video.fps)),
        "chunk_frames": counts,
        "checksum": list(checksums),
    }


def cut_to_spool(job: CutJob, sign: Callable[[Any], None]) -> Outcome:
    """Cuts one video into the spool; `sign` is called with the seconds of each chunk that is done."""
    part = job.spool / f"{job.number:07d}.part-{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    with disk():
        (part / "chunks").mkdir(parents=True)
    try:
        outcome = _cut(job, part, sign)
        enter(job.spool, job.number, part, outcome)
        return outcome
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cut(job: CutJob, part: Path, sign: Callable[[Any], None]) -> Outcome:
    video, rate = job.video, Fraction(job.settings.fps)
    try:
        with local_copy(video.path, part / "source", sign) as path:
            sizes, frames, checksums, first = [], [], [], None
            for number, (mp4, info) in enumerate(cut_chunks(path, job.settings)):
                with writing(part / "chunks" / f"{number}.mp4") as file, disk():
                    file.write(mp4)
                first = first or info
                sizes.append(len(mp4))
                frames.append(info.frames)
                checksums.append(checksum(mp4))
                sign(float(info.frames / rate))
        assert first is not None, "a video without a frame is refused when it is read"
        row = chunk_row(CutVideo(video.name, rate, first.width, first.height, (), frames), checksums)
        return Outcome(row, sum(sizes), None)
    except DiskError:
        raise
    except BrokenVideo as error:
        return failed(video, error.kind, str(error))
    except MemoryError:
        return failed(video, "killed", "there was not memory enough to decode it")
    except Exception as error:  # no video may end a run of days, whatever it makes a library raise
        return failed(video, "damaged", f"{type(error).__name__}: {error}")


def failed(video: Input, kind: str, reason: str) -> Outcome:
    """The outcome of a video that could not be cut."""
    return Outcome(None, 0, Failure(video.path, video.name, kind, reason))


def enter(spool: Path, number: int, part: Path, outcome: Outcome) -> None:
    """Makes a folder beside the spool's entries one of them, with what became of its video."""
    with disk():
        if outcome.failure:
            shutil.rmtree(part / "chunks", ignore_errors=True)
        part.mkdir(parents=True, exist_ok=True)
        (part / "cut.json").write_text(json.dumps(asdict(outcome)))
        # Another process may have cut the same video, when it was taken for dead; both did the same.
        try:
            os.replace(part, spool / f"{number:07d}")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(part)


def entries(spool: Path) -> Iterator[int]:
    """The numbers of the videos in the spool; what was left half done is removed."""
    for entry in sorted(spool.iterdir()):
        if entry.name.isdigit():
            yield int(entry.name)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def load(spool: Path, number: int, *, verify: bool) -> Outcome | None:
    """What became of a video, None when its entry is damaged; `verify` reads all its chunks."""
    folder = spool / f"{number:07d}"
    try:
        found = json.loads((folder / "cut.json").read_text())
        failure = found["failure"] and Failure(**found["failure"])
        outcome = Outcome(found["row"], found["size"], failure)
        if verify and outcome.row is not None:
            for place, expected in enumerate(outcome.row["checksum"]):
                if checksum(chunk(spool, number, place)) != expected:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outcome


def chunk(spool: Path, number: int, place: int) -> bytes:
    """One chunk of a video in the spool."""
    return (chunk_folder(spool, number) / f"{place}.mp4").read_bytes()


def chunk_folder(spool: Path, number: int) -> Path:
    """The folder of a video's chunks."""
    return spool / f"{number:07d}" / "chunks"


def remove(spool: Path, number: int) -> None:
    """Takes a video out of the spool, at once however many chunks it has."""
    folder = spool / f"{number:07d}"
    if folder.exists():
        gone = spool / f"{number:07d}.gone"
        os.replace(folder, gone)
        shutil.rmtree(gone)
