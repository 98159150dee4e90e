"""From a folder of videos to a chunk store: every video at one frame rate and size, cut into chunks of equal length.

Output frame k of a video shows its picture at k / fps seconds, whatever rate or clock the source has, so chunk
boundaries do not drift and an annotation in seconds needs no other knowledge.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidlang.data.decode import VideoInfo, iterate_frames, probe
from vidlang.data.encode import EncodeSettings, encode_mp4
from vidlang.data.processes import worker_pool
from vidlang.data.store_writer import CutVideo, check_target, write_store

SUFFIXES = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split())


@dataclass(frozen=True)
class PrecutSettings:
    """How videos are cut; the defaults are the house's chunk format.

    A chunk holds round(chunk_seconds * fps) frames, the last one what is left. Frames shrink until their shorter side
    is `short_side`, with square pixels and even sizes; a smaller video keeps its size.
    """

    chunk_seconds: float = 15
    fps: int | Fraction = 30
    short_side: int = 288
    encode: EncodeSettings = field(default_factory=EncodeSettings)

    def __post_init__(self) -> None:
        if not self.fps > 0 or self.frames_per_chunk < 1:
            raise ValueError(
                f"a chunk must hold a frame or more, got {self.chunk_seconds} s at {self.fps} frames a second"
            )
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"short_side must be an even number of pixels, got {self.short_side}")

    @property
    def frames_per_chunk(self) -> int:
        """Frames in every chunk but the last."""
        return round(self.chunk_seconds * Fraction(self.fps))


@dataclass(frozen=True)
class Report:
    """Which videos are in the store, and why the others are not, as (name, reason)."""

    done: list[str]
    failed: list[tuple[str, str]]


def find_videos(folder: str | Path) -> list[tuple[str, Path]]:
    """The videos in a folder and its subfolders as (name, path), ordered by name: the path inside, less its suffix."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise ValueError(f"there are no videos in {str(folder)!r}: no file ends in {', '.join(sorted(SUFFIXES))}")
    return sorted((path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths)


def cut_video(path: str | Path, name: str, settings: PrecutSettings, folder: Path | None = None) -> CutVideo:
    """One video file as chunks, in memory or in files of `folder`; BrokenVideo when it cannot be read to its end."""
    chunks: list[bytes] = []
    infos: list[VideoInfo] = []
    for mp4, info in cut_chunks(path, settings):
        if folder is None:
            chunks.append(mp4)
        else:
            (folder / str(len(infos))).write_bytes(mp4)
        infos.append(info)
    sequence = chunks if folder is None else ChunkFiles(folder, len(infos))
    return CutVideo(name, settings.fps, infos[0].width, infos[0].height, sequence, tuple(info.frames for info in infos))


def cut_chunks(path: str | Path, settings: PrecutSettings) -> Iterator[tuple[bytes, VideoInfo]]:
    """The chunks of one video file in order, each as MP4 and what a reader finds in it."""
    frames = resample(iterate_frames(path, settings.short_side), settings.fps)
    for first in frames:
        chunk = itertools.chain([first], itertools.islice(frames, settings.frames_per_chunk - 1))
        mp4 = encode_mp4(chunk, fps=settings.fps, settings=settings.encode)
        yield mp4, probe(mp4)


def resample(timed: Iterable[tuple[np.ndarray, float]], fps: int | Fraction) -> Iterator[np.ndarray]:
    """Frames at the times k / fps after the first: each the source frame nearest in time, the earlier of two.

    The last source frame lasts as long as frames do on average.
    """
    before: tuple[np.ndarray, float] | None = None
    start, number, sources, rate = 0.0, 0, 0, float(fps)
    for frame, seconds in timed:
        if before is None:
            start = seconds
        else:
            # The small number keeps rounded clocks from breaking ties at random.
            middle = (before[1] + seconds) / 2 - start + 1e-6
            while number / rate <= middle:
                yield before[0]
                number += 1
        before = (frame, seconds)
        sources += 1
    if before is None:
        return
    length = before[1] - start
    period = length / (sources - 1) if sources > 1 else 1 / rate
    for _ in range(number, max(1, round((length + period) * rate))):
        yield before[0]


def precut(
    inputs: str | Path | Sequence[tuple[str, str | Path]],
    output: str | Path,
    settings: PrecutSettings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Cuts a folder of videos, or (name, path) pairs, into a new store at `output`, ordered by name.

    A video that cannot be read is left out, reported and listed in failed.jsonl of the store; when none can be read
    there is no store. `progress` is called with a line of text after each video.
    """
    videos = find_videos(inputs) if isinstance(inputs, str | Path) else sorted((n, Path(p)) for n, p in inputs)
    _check_names(videos)
    if workers < 1:
        raise ValueError(f"precut needs at least one worker, got {workers}")
    output = Path(output)
    check_target(output, overwrite)
    report = Report([], [])
    spool = output.with_name(f"{output.name}.tmp-{os.getpid()}-chunks")
    shutil.rmtree(spool, ignore_errors=True)
    try:
        results = _cut_all([(path, name, settings, spool / str(i)) for i, (name, path) in enumerate(videos)], workers)
        write_store(output, _collect(results, videos, report, progress), settings, overwrite=overwrite)
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    if report.failed:
        lines = (json.dumps({"video": name, "reason": reason}) + "\n" for name, reason in report.failed)
        (output / "failed.jsonl").write_text("".join(lines))
    return report


Job = tuple[Path, str, PrecutSettings, Path]


class ChunkFiles(Sequence[bytes]):
    """Chunks that lie in files of a folder, read when asked for: a day of video does not fit in memory."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> bytes:  # type: ignore[override]
        if not 0 <= number < self.length:
            raise IndexError(number)
        return (self.folder / str(number)).read_bytes()


def _cut_to_files(job: Job) -> CutVideo | str:
    """Cuts one video into files of a folder of its own; the reason when it cannot be read."""
    path, name, settings, folder = job
    folder.mkdir(parents=True)
    try:
        return cut_video(path, name, settings, folder)
    except ValueError as error:
        shutil.rmtree(folder)
        return str(error)


def _cut_all(jobs: list[Job], workers: int) -> Iterator[CutVideo | str]:
    """The results of all jobs in order; workers run ahead by a few videos only, to bound the disk they take."""
    if workers == 1:
        yield from map(_cut_to_files, jobs)
        return
    with worker_pool(min(workers, len(jobs))) as pool:
        ahead: deque[Future[CutVideo | str]] = deque()
        remaining = iter(jobs)
        try:
            for _, name, _, _ in jobs:
                room = 4 * workers - len(ahead)
                ahead.extend(pool.submit(_cut_to_files, job) for job in itertools.islice(remaining, room))
                try:
                    yield ahead.popleft().result()
                except BrokenProcessPool as error:
                    raise RuntimeError(
                        f"a worker died cutting {name!r} or a video after it; if memory is short, use fewer workers"
                    ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(
    results: Iterable[CutVideo | str],
    videos: Sequence[tuple[str, Path]],
    report: Report,
    progress: Callable[[str], None] | None,
) -> Iterator[CutVideo]:
    """The videos that were cut; fills in the report and frees the chunk files on the way."""
    for number, (result, (name, path)) in enumerate(zip(results, videos, strict=True), start=1):
        if isinstance(result, str):
            report.failed.append((name, result))
            line = f"failed: {result}"
        else:
            yield result
            report.done.append(name)
            shutil.rmtree(result.chunks.folder)  # type: ignore[attr-defined]
            line = f"{len(result.chunks)} chunks, {sum(result.chunk_frames) / float(result.fps):.1f} s"
        if progress is not None:
            progress(f"[{number}/{len(videos)}] {path}: {line}")
    if not report.done:
        name, reason = report.failed[0]
        raise ValueError(f"none of the {len(videos)} videos could be read; the first, {name!r}: {reason}")


def _check_names(videos: Sequence[tuple[str, Path]]) -> None:
    if not videos:
        raise ValueError("there are no videos to cut: the list is empty")
    for (name, path), (other, other_path) in itertools.pairwise(videos):
        if name == other:
            raise ValueError(f"{str(path)!r} and {str(other_path)!r} would both be called {name!r}; rename one")
