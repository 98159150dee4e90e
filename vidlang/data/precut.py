"""From videos to a chunk store: every video at one frame rate and size, cut into chunks of equal length.

Helper processes cut videos into a spool; as soon as the first videos in order fill a shard, it is written and noted in
a journal, and their place in the spool is freed. A run that is killed, whenever, is taken up by starting it again, and
ends in the same bytes: what is lost is the work on the videos that were just being cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vidlang.data.cutting.progress import Progress
from vidlang.data.cutting.run import Plan, Report, Run, Start, begin
from vidlang.data.cutting.spool import CutJob, Failure, Outcome, cut_to_spool
from vidlang.data.cutting.video import CutVideo, PrecutSettings, cut_chunks, cut_video, resample
from vidlang.data.workers.processes import Lost, Sign, run_jobs

__all__ = [
    "CutVideo",
    "Failure",
    "PrecutSettings",
    "Progress",
    "Report",
    "cut_chunks",
    "cut_video",
    "precut",
    "resample",
]

# Bytes that helpers may cut ahead of a video that takes long: what the spool may grow to.
AHEAD = 8 << 30


def precut(
    inputs: str | Path | Sequence[tuple[str, str | Path]],
    output: str | Path,
    settings: PrecutSettings,
    *,
    workers: int = 1,
    layout: str = "records",
    overwrite: bool = False,
    restart: bool = False,
    retry_failed: bool = False,
    video_timeout: float | None = None,
    work: str | Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Cuts videos (a folder, a pattern, a list file, or (name, path) pairs) into a new store, ordered by name.

    A video that cannot be read is left out, reported and listed in failed.jsonl of the store; when none can be read
    there is no store. A helper process that finishes no chunk for `video_timeout` seconds is ended, and its video
    listed. With one worker and no such limit there are no helpers. `work` is the folder for what is unfinished, beside
    the store if it is not given. `overwrite` replaces a store, `restart` drops what an unfinished run has done, and
    `retry_failed` tries again what failed in it, or adds to a finished store what is not in it.
    `progress` is called after each chunk.
    """
    if workers < 1:
        raise ValueError(f"precut needs at least one worker, got {workers}")
    start = Start(overwrite, restart, retry_failed)
    with begin(inputs, output, work, Plan(settings, layout), start) as run:
        run.write_ready()
        for job, answer in _answers(run, workers, video_timeout):
            if isinstance(answer, Outcome):
                run.take(job.number, answer)
            elif isinstance(answer, Lost):
                run.fail(job.number, answer.kind, answer.reason)
            progress(run.progress)
        report = run.finish()
        run.progress.finished = True
        progress(run.progress)
        return report


def _answers(run: Run, workers: int, video_timeout: float | None) -> Iterator[tuple[CutJob, Outcome | Sign | Lost]]:
    if workers == 1 and video_timeout is None:
        for job in run.jobs():
            yield job, cut_to_spool(job, _no_sign)
        return
    yield from run_jobs(
        cut_to_spool, run.jobs(), workers=workers, silence=video_timeout, room=lambda: run.work.spooled < AHEAD
    )


def _no_sign(news: Any) -> None:
    """Nobody listens in the same process."""
