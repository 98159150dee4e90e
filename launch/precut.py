"""Cuts videos into a chunk store, checks a store, or makes a store of a folder of chunks that is there already.

    python -m launch.precut --input=VIDEOS --output=STORE
    python -m launch.precut --check=STORE
    python -m launch.precut --adopt=FOLDER --layout=seconds --output=STORE [--split=train] [--cut_seconds=15]

VIDEOS is a folder, a pattern, a list (a csv file with the columns path and, if wanted, name; or a txt file with a path
a line), or the address of such on an object store. Takes about 3 s a core for each 15 s of video. A run that was
killed goes on when the same command is given again. Videos that cannot be read are left out, listed in
STORE/failed.jsonl, and make the exit code 1, as what --check finds does; without a store it is 2.
"""

import math
import re
import sys
import time
import traceback
from dataclasses import replace
from fractions import Fraction
from typing import Any

from absl import flags

from launch import cli
from vidlang.data.chunks import open_store
from vidlang.data.cutting.inputs import printable
from vidlang.data.encode import ENCODINGS
from vidlang.data.precut import PrecutSettings, Progress, Report, precut
from vidlang.data.stores.adopt import LAYOUTS as ADOPTED
from vidlang.data.stores.adopt import adopt
from vidlang.data.workers.machine import available_cores

HOUSE = PrecutSettings()
INPUT = flags.DEFINE(cli.PATH, "input", None, "Videos: a folder, a pattern, a csv or txt list, or an address of such.")
OUTPUT = flags.DEFINE(cli.PATH, "output", None, "The new store: a folder, or an address on an object store.")
FPS = flags.DEFINE_string("fps", str(HOUSE.fps), "Frames a second in the store, such as 30 or 30000/1001.")
SHORT_SIDE = flags.DEFINE_integer("short_side", HOUSE.short_side, "Shorter side in pixels; nothing is enlarged.")
CHUNK_SECONDS = flags.DEFINE_float("chunk_s", HOUSE.chunk_seconds, "Seconds of a chunk.")
ENCODING = flags.DEFINE_enum("encoding", "balanced", list(ENCODINGS), "From few bytes to fast reading.")
LAYOUT = flags.DEFINE_string(
    "layout", None, "records (if not given), or chunks as files named by seconds or by index; to --adopt, its own."
)
WORKERS = flags.DEFINE_integer("workers", None, "Processes that cut videos; one for each core if not given.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a store that exists.")
RESTART = flags.DEFINE_bool("restart", False, "Drop what an unfinished run has done.")
RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Cut again what failed, in a finished store too.")
VIDEO_TIMEOUT = flags.DEFINE_float("video_timeout", 600.0, "Seconds for one chunk, after which its video is given up.")
WORK = flags.DEFINE(cli.PATH, "work", None, "Folder for what is unfinished; beside the store if not given.")
RUNNER = flags.DEFINE_string("runner", None, "Cut with Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, ...")
BEAM_OPTIONS = flags.DEFINE_multi_string("beam_option", [], "An option of Beam, as key=value; any number of them.")
SPOOL = flags.DEFINE(cli.PATH, "spool", None, "Address for cut videos, where Beam's workers share no file system.")
CHECK = flags.DEFINE(cli.PATH, "check", None, "A store of which every record is read, verified and decoded.")
ADOPT = flags.DEFINE(
    cli.PATH, "adopt", None, "A folder of chunks, videos or images that --output is to be the index of."
)
SPLIT = flags.DEFINE_string("split", None, "To adopt tfds_images: the split.")
CUT_SECONDS = flags.DEFINE_float("cut_seconds", None, "To adopt chunks whose names do not tell: seconds between them.")
LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


def main(argv: list[str]) -> None:
    """Reads the flags and does one of the three."""
    del argv
    _check_flags()
    output = OUTPUT.value or ""
    if CHECK.value is not None:
        _check(CHECK.value)
    elif ADOPT.value is not None:
        _adopt(ADOPT.value, output, LAYOUT.value or "")
    else:
        _cut(INPUT.value or "", output)


def _check_flags() -> None:
    """Refuses flags that are missing, that do not go together, and numbers that cannot be meant."""
    asked = {"input": INPUT.value, "check": CHECK.value, "adopt": ADOPT.value}
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different things to do; give one of them")
    if CHECK.value == "":
        raise ValueError("--check needs the path of a store, and is empty")
    if CHECK.value is None and (not (INPUT.value or ADOPT.value) or not OUTPUT.value):
        raise ValueError("say which videos, and where the store goes: --input=VIDEOS --output=STORE")
    if ADOPT.value is not None and not LAYOUT.value:
        raise ValueError(f"--adopt needs --layout=..., how the files lie in the folder: {', '.join(ADOPTED)}")
    for name, value in {"split": SPLIT.value, "cut_seconds": CUT_SECONDS.value}.items():
        if value is not None and ADOPT.value is None:
            raise ValueError(f"--{name} is for --adopt")
    if _workers() < 1:
        raise ValueError(f"--workers must be 1 or more, got {WORKERS.value}")
    for name, seconds in {"video_timeout": VIDEO_TIMEOUT.value, "cut_seconds": CUT_SECONDS.value}.items():
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"--{name} must be a number of seconds above 0, got {seconds}")


def _cut(source: str, output: str) -> None:
    line = ProgressLine()
    try:
        report = _precut(source, output, line)
    except KeyboardInterrupt:
        line.end()
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    except (*cli.USER_ERRORS, SystemExit):
        raise
    except Exception:  # our mistake; the exit code 1 says that there is a store
        traceback.print_exc()
        raise SystemExit(2) from None
    finally:
        line.end()
    print(f"{len(report.done)} videos in {output}")
    if report.failed:
        raise SystemExit(f"{len(report.failed)} of the videos could not be read; {output}/failed.jsonl says why")


def _precut(source: str, output: str, line: "ProgressLine") -> Report:
    settings = PrecutSettings(CHUNK_SECONDS.value, _fps(), SHORT_SIDE.value, replace(ENCODINGS[ENCODING.value]))
    options: dict[str, Any] = {
        "layout": LAYOUT.value or "records",
        "overwrite": OVERWRITE.value,
        "restart": RESTART.value,
        "retry_failed": RETRY_FAILED.value,
        "video_timeout": VIDEO_TIMEOUT.value,
        "work": WORK.value,
        "progress": line,
    }
    if RUNNER.value is None:
        if SPOOL.value is not None:
            raise ValueError("--spool is for --runner; without it, what is unfinished lies in --work")
        return precut(source, output, settings, workers=_workers(), **options)
    from vidlang.data.cutting.beam import precut_with_beam

    options |= {"beam_options": BEAM_OPTIONS.value, "spool": SPOOL.value}
    return precut_with_beam(source, output, settings, runner=RUNNER.value, **options)


def _fps() -> int | Fraction:
    try:
        # Fraction would compute 1e999999999.
        exact = Fraction(FPS.value if re.fullmatch(r"\d{1,10}([./]\d{1,10})?", FPS.value) else "")
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--fps must be a number such as 30 or 30000/1001, got {FPS.value!r}") from None
    return int(exact) if exact.denominator == 1 else exact


def _workers() -> int:
    return available_cores() if WORKERS.value is None else WORKERS.value


class ProgressLine:
    """Shows how far a precut is: one line in place on a terminal, else a line every half minute; failures at once."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown, self._failures, self._open = -LINE_SECONDS, 0, False

    def __call__(self, progress: Progress) -> None:
        for failure in progress.failures[self._failures :]:
            self.end()
            print(f"failed ({failure.kind}): {printable(failure.file)}: {failure.reason}", flush=True)
        self._failures = len(progress.failures)
        now = time.monotonic()
        if progress.finished or now - self._shown > (0.2 if self._terminal else LINE_SECONDS):
            self._shown = now
            if self._terminal:
                print(f"\r\033[K{progress.line()}", end="", flush=True)
                self._open = True
            else:
                print(progress.line(), flush=True)

    def end(self) -> None:
        """Leaves the line on the terminal that it was written on."""
        if self._open:
            print(flush=True)
            self._open = False


def _check(store: str) -> None:
    found = 0
    opened = open_store(store)
    for problem in opened.problems(workers=_workers()):
        print(problem, flush=True)
        found += 1
    if found:
        raise SystemExit(f"{found} things are wrong with {store}")
    print(f"{opened}: nothing is wrong")


def _adopt(folder: str, output: str, layout: str) -> None:
    def say(line: str) -> None:
        print(line, flush=True)

    report = adopt(
        folder,
        output,
        layout,
        workers=_workers(),
        progress=say,
        split=SPLIT.value,
        cut_seconds=CUT_SECONDS.value,
        overwrite=OVERWRITE.value,
    )
    for name, what in report.notes:
        print(f"note: {name}: {what}")
    for file in report.foreign:
        print(f"left out, not of this layout: {file}")
    print(f"{report.videos} videos in {output}")
    if report.refused:
        for name, kind, reason in report.refused:
            print(f"refused ({kind}): {name}: {reason}")
        raise SystemExit(f"{len(report.refused)} of the videos could not be read")


if __name__ == "__main__":
    cli.run(main)
