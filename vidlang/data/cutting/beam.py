"""The same store by an Apache Beam pipeline: DirectRunner here, or Dataflow, Flink or Spark on many machines.

Workers cut videos into a spool: on a file system that all of them see under the same path, or on an object store. From
what is there the shards are planned as they always are, and a second pipeline writes them in parallel. A run that was
killed is taken up by starting it again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidlang.data.cutting.assembling import Batch, write_shard
from vidlang.data.cutting.progress import Progress
from vidlang.data.cutting.remote_spool import RemoteSpool
from vidlang.data.cutting.run import Plan, Report, Run, Start, begin
from vidlang.data.cutting.spool import CutJob, cut_to_spool, enter, failed
from vidlang.data.cutting.video import PrecutSettings
from vidlang.data.stores.remote import is_address
from vidlang.data.workers.processes import Lost, run_jobs


def precut_with_beam(
    inputs: str | Path | Sequence[tuple[str, str | Path]],
    output: str | Path,
    settings: PrecutSettings,
    *,
    runner: str,
    beam_options: Sequence[str] = (),
    layout: str = "records",
    overwrite: bool = False,
    restart: bool = False,
    retry_failed: bool = False,
    video_timeout: float | None = None,
    work: str | Path | None = None,
    spool: str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """As `precut`, by a Beam runner; `beam_options` are its options as "key=value".

    `video_timeout` also takes a process of its own for each video, so that one that dies is listed as failed. `spool`
    is an address on an object store, for workers that share no file system; then the store lies on one too, and `work`,
    here, holds little.
    """
    pipeline = _pipeline(runner, beam_options)
    if spool is not None and not (is_address(str(output)) and is_address(spool)):
        raise ValueError(f"a spool on an object store serves a store on one, got {spool!r} and {str(output)!r}")
    with begin(inputs, output, work, Plan(settings, layout), Start(overwrite, restart, retry_failed)) as run:
        remote = None if spool is None else _remote_spool(spool, run, restart)
        cut = functools.partial(_cut, video_timeout=video_timeout)
        if remote is not None:
            cut = functools.partial(remote.cut, cut=cut)
        _each(pipeline, "cut", [job.absolute() for job in run.jobs()], cut)
        if remote is not None:
            for number in remote.numbers():
                if number not in run.work.outcomes and number not in run.work.written:
                    remote.get(number, run.work.spool, chunks=False)
        run.collect(verify=remote is None)
        progress(run.progress)
        if layout == "records":
            _write_shards(pipeline, run, remote)
        report = run.finish()
        if remote is not None:
            remote.remove()
        run.progress.finished = True
        progress(run.progress)
        return report


def _remote_spool(address: str, run: Run, restart: bool) -> RemoteSpool:
    """The spool of this very run, with what is here and not there."""
    digest = hashlib.sha256((run.work.root / "run.json").read_bytes()).hexdigest()[:16]
    remote = RemoteSpool(f"{address.rstrip('/')}/{digest}")
    if restart:
        remote.remove()
    for number in run.work.retried:
        remote.drop(number)
    for number in run.work.outcomes:
        if not remote.has(number):
            remote.put(run.work.spool, number)
    return remote


def _write_shards(pipeline: Callable[[], Any], run: Run, remote: RemoteSpool | None) -> None:
    """Writes all shards, each by whichever worker, and notes them."""
    batches = list(run.ready())
    if remote is not None:
        _each(pipeline, "write", batches, functools.partial(remote.write, output=str(run.target.path)))
        for batch in batches:
            run.work.log(remote.line(batch.shard))
        return
    lines = run.work.root.resolve() / "lines"
    lines.mkdir(exist_ok=True)
    spool, store = run.work.spool.resolve(), run.work.store.resolve()
    _each(pipeline, "write", batches, functools.partial(_write, spool=spool, store=store, lines=lines))
    for batch in batches:
        run.log(json.loads((lines / f"{batch.shard}.json").read_text()))


def _pipeline(runner: str, options: Sequence[str]) -> Callable[[], Any]:
    """What makes a new pipeline; ValueError when Beam is absent or does not take the options."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.portable_runner import PortableRunner
    except ImportError as error:
        raise ValueError("--runner needs Apache Beam, which is not installed: pip install 'vidlang[beam]'") from error
    for option in options:
        if "=" not in option:
            raise ValueError(f"an option of Beam is given as key=value, got {option!r}")
    # Given as a list, for else they are looked for in our own command line.
    parsed = PipelineOptions([f"--runner={runner}", *(f"--{option.removeprefix('--')}" for option in options)])
    said = io.StringIO()
    try:
        # Once before there is anything to clear away. Beam leaves what is wrong with a value to the parser of a
        # command line, which prints and exits.
        with contextlib.redirect_stderr(said):
            unknown = parsed.get_all_options(retain_unknown_options=True).keys() - parsed.get_all_options().keys()
            pipeline = beam.Pipeline(options=parsed)
    except (Exception, SystemExit) as error:  # each runner has errors of its own
        reason = said.getvalue().strip().rpartition("error: ")[2] if isinstance(error, SystemExit) else str(error)
        raise ValueError(f"Beam cannot use the runner {runner!r} so: {' '.join(reason.split())}") from error
    # What those runners do not know they hand on.
    if unknown and not isinstance(pipeline.runner, PortableRunner):
        raise ValueError(f"Beam's {runner} knows no option {', '.join(sorted(unknown))}; check each --beam_option")
    return lambda: beam.Pipeline(options=parsed)


def _each(pipeline: Callable[[], Any], name: str, items: Sequence[Any], function: Callable[[Any], Any]) -> None:
    """Calls the function for each item, wherever the runner does it, and waits for all."""
    if not items:
        return
    import apache_beam as beam

    with pipeline() as p:
        # A reshuffle keeps the items from being fused into one task with their creation.
        _ = p | f"Items to {name}" >> beam.Create(items) | beam.Reshuffle() | f"{name}" >> beam.Map(function)


def _cut(job: CutJob, video_timeout: float | None) -> None:
    """Cuts one video into the spool, unless a task that was given up has done it already."""
    if (job.spool / f"{job.number:07d}").exists():
        return
    if video_timeout is None:
        cut_to_spool(job, _no_sign)
        return
    for _, answer in run_jobs(cut_to_spool, [job], workers=1, silence=video_timeout):
        if isinstance(answer, Lost):
            part = job.spool / f"{job.number:07d}.part-lost-{os.getpid()}"
            enter(job.spool, job.number, part, failed(job.video, answer.kind, answer.reason))


def _write(batch: Batch, spool: Path, store: Path, lines: Path) -> None:
    """Writes one shard, and what the journal is to say of it beside."""
    part = lines / f"{batch.shard}.part-{socket.gethostname()}-{os.getpid()}"
    part.write_text(json.dumps(write_shard(spool, store, batch)))
    os.replace(part, lines / f"{batch.shard}.json")


def _no_sign(news: Any) -> None:
    """Nobody listens in a pipeline."""
