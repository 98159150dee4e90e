"""One run of precut: opened where an earlier one ended, fed with outcomes, and finished into a store.

Who cuts the videos and who writes the shards, helpers here or a Beam pipeline elsewhere, is none of its business.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidlang.data import folders
from vidlang.data.chunks import open_store
from vidlang.data.cutting import reopen, spool
from vidlang.data.cutting.assembling import Batch, Planner, check_layout, unpack, write_files, write_shard
from vidlang.data.cutting.inputs import Input, find_inputs
from vidlang.data.cutting.progress import Progress
from vidlang.data.cutting.spool import CutJob, Failure, Outcome
from vidlang.data.cutting.target import LocalTarget, Target, open_target
from vidlang.data.cutting.video import PrecutSettings
from vidlang.data.cutting.work import Work
from vidlang.data.stores import record_writer
from vidlang.data.stores.remote import is_address
from vidlang.data.stores.writer import close_store, plain


@dataclass(frozen=True)
class Report:
    """Which videos are in the store, and which are not."""

    done: list[str]
    failed: list[Failure]


@dataclass(frozen=True)
class Plan:
    """What decides the bytes of a store, besides its videos."""

    settings: PrecutSettings
    layout: str = "records"


@dataclass(frozen=True)
class Start:
    """How a run begins where there is something already."""

    overwrite: bool = False  # replace a store
    restart: bool = False  # drop what an unfinished run has done
    retry_failed: bool = False  # try again what failed in an unfinished run, or is not in a finished store


@contextlib.contextmanager
def begin(
    inputs: str | Path | Sequence[tuple[str, str | Path]],
    output: str | Path,
    work: str | Path | None,
    plan: Plan,
    start: Start,
) -> Iterator[Run]:
    """A run that no other process works on, with what an earlier one of the same plan has done.

    An error of the disk ends it with a sentence that says that the work is kept.
    """
    videos = find_inputs(inputs)
    check_layout(plan.layout, plan.settings.chunk_seconds, videos)
    target = open_target(output, work)
    if work is not None:
        within = [inputs] if isinstance(inputs, str | Path) and os.path.isdir(inputs) else []
        files = (video.path for video in videos if not is_address(video.path))
        folders.check_apart(target.work, [*within, *target.here()], files)
    if not isinstance(target, LocalTarget) and plan.layout != "records":
        raise ValueError(f"a store on an object store has the layout 'records', got {plan.layout!r}")
    itself = not target.work.exists() or folders.is_begun(target.work)
    with folders.owned(target.work):
        try:
            yield _open(target, videos, plan, start)
        except OSError as error:
            raise OSError(
                f"the disk or the network failed: {error}; what is done is kept in {str(target.work)!r}: "
                "mend this and run the same command again"
            ) from error
        finally:
            if target.work.exists() and not folders.is_begun(target.work):
                folders.remove(target.work, itself=itself)


def _open(target: Target, videos: list[Input], plan: Plan, start: Start) -> Run:
    again = not start.overwrite and not start.restart and reopen.is_wanted(target, retry_failed=start.retry_failed)
    target.check(start.overwrite or again)
    if again and isinstance(target, LocalTarget):
        reopen.check(target, videos, plain(plan.settings), plan.layout)
    if start.restart:
        folders.clear(target.work)
    limits = {"shard_chunks": record_writer.CHUNKS_PER_SHARD, "shard_bytes": record_writer.SHARD_BYTES}
    work = Work(target, videos, {**plain(plan.settings), "layout": plan.layout, **limits})
    work.open(retry_failed=start.retry_failed)
    if again:
        reopen.fill(work)
    return Run(work, plan)


class Run:
    """A run with the videos that are still missing."""

    def __init__(self, work: Work, plan: Plan) -> None:
        self.work, self.plan = work, plan
        self.target = work.target
        self._retry()
        self._planner, self._prepared = Planner(work, plan.layout), False
        self.progress = self._progress()

    def jobs(self) -> Iterator[CutJob]:
        """The videos that are still to be cut."""
        for number in self.work.missing():
            yield CutJob(number, self.work.videos[number], self.plan.settings, self.work.spool)

    def take(self, number: int, outcome: Outcome) -> None:
        """Notes what became of a video, and writes what it completes."""
        self.note(number, outcome)
        self.write_ready()

    def fail(self, number: int, kind: str, reason: str) -> None:
        """Notes that the process which cut a video did not live to say what became of it."""
        outcome = spool.failed(self.work.videos[number], kind, reason)
        spool.enter(self.work.spool, number, self.work.spool / f"{number:07d}.part-{os.getpid()}", outcome)
        self.take(number, outcome)

    def note(self, number: int, outcome: Outcome) -> None:
        """Notes what became of a video."""
        self.work.add(number, outcome)
        self._count(number)

    def ready(self) -> Iterator[Batch]:
        """What can be written now."""
        for batch in self._planner.ready():
            if not self._prepared:
                self.target.prepare(keep={name for line in self.work.journal() for name in line["files"]})
                self._prepared = True
            yield batch

    def write_ready(self) -> None:
        """Writes all that can be written now."""
        for batch in self.ready():
            if self.plan.layout == "records":
                self.log(write_shard(self.work.spool, self.work.store, batch))
            else:
                seconds = self.plan.settings.chunk_seconds
                self.work.log(write_files(self.work, batch.numbers[0], self.plan.layout, seconds))

    def log(self, line: dict[str, Any]) -> None:
        """Brings a shard that is written to where it stays, and notes it."""
        for name in line["files"]:
            self.target.keep(name)
        self.work.log(line)

    def collect(self, *, verify: bool) -> None:
        """Takes up what others have put into the spool; chunks that lie elsewhere cannot be verified here."""
        before = set(self.work.outcomes)
        self.work.collect(verify=verify)
        for number in self.work.outcomes.keys() - before:
            self._count(number)

    def finish(self) -> Report:
        """Writes index and header and gives the store its name; ValueError when no video could be read."""
        work, failures = self.work, self.work.failures()
        self.write_ready()
        if not work.written:
            folders.clear(work.root)
            raise ValueError(
                f"none of the {len(work.videos)} videos could be read; the first, {failures[0].name!r}: "
                f"{failures[0].reason}"
            )
        names = {name for line in work.journal() for name in line["files"]}
        for entry in work.store.iterdir():
            # A shard that was written when another was to be expected; folders may hold those of several videos.
            if entry.is_file() and entry.name not in names:
                entry.unlink()
        close_store(work.store, work.journal(), plain(self.plan.settings), layout=self.plan.layout)
        if failures:
            lines = (json.dumps(asdict(failure)) + "\n" for failure in failures)
            (work.store / "failed.jsonl").write_text("".join(lines))
        if isinstance(self.target, LocalTarget):
            open_store(work.store).check()
        done = [row["video"] for line in work.journal() for row in line["rows"]]
        self.target.finish()
        folders.remove(work.root)
        return Report(done, failures)

    def _retry(self) -> None:
        """Makes room for the videos that failed and are tried again."""
        work = self.work
        first = min([*work.retried, *itertools.islice(work.missing(), 1)], default=len(work.videos))
        if self.plan.layout == "records" and first < max(work.written, default=-1):
            unpack(work, first)
        for number in work.retried:
            work.drop(number)

    def _progress(self) -> Progress:
        work = self.work
        progress = Progress(len(work.videos), sum(video.size for video in work.videos))
        for line in work.journal():
            progress.done += len(line["numbers"])
            progress.hours += sum(row["duration"] for row in line["rows"]) / 3600
            progress.written += line.get("stored", 0) or sum(line["files"].values())
        for outcome in work.outcomes.values():
            progress.add(outcome)
        progress.left = sum(work.videos[number].size for number in work.missing())
        return progress

    def _count(self, number: int) -> None:
        """Counts a video that this run has cut."""
        outcome, progress = self.work.outcomes[number], self.progress
        progress.add(outcome)
        progress.seconds += outcome.seconds
        progress.cut += 1
        progress.read += self.work.videos[number].size
