r"""What a trained captioner says about videos: your own files, or the clips of a table.

    python -m launch.caption --run=runs/demo_caption --video=my_video.mp4
    python -m launch.caption --run=runs/caption_long --video=films/ --segments=16 --how=beam --out=captions.jsonl
    python -m launch.caption --run=runs/caption_short --how=nucleus --samples=3 --out=data/narrated/train.jsonl \
        --data="{'name': 'egoclip', 'split': 'train', 'root': 'data/ego4d', 'store': 'data/ego4d/store'}"
    python -m launch.caption --run=runs/caption_short --out=data/narrated/train/ --part=0/8 --data=...
    python -m launch.caption --out=data/narrated/train/ --check

Files may be of any kind that FFmpeg reads, and stay as they are. --segments or --segment_seconds cut each into parts
with a sentence of their own. With --data a whole table is narrated, into one file of JSON lines (--out=FILE.jsonl) or,
of any size, into a folder of Parquet files (--out=FOLDER/, docs/bulk.md), which several JAX processes can make together
(docs/clusters.md) and --check looks into. What --out has already is not made again, so a killed command goes on when it
is given again, and --part=0/4 to --part=3/4 share a table. What it writes can be trained on: {'name': 'narrated', ...}
(docs/captioning.md). Exit code 2 with a sentence where it cannot be done.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from launch import cli
from vidlang.core import cluster
from vidlang.core.config import call
from vidlang.data.bulk_store import CAPTIONS, require_complete
from vidlang.data.clips import ClipTable
from vidlang.data.cutting.inputs import Input
from vidlang.data.precut import Progress
from vidlang.nn.generation import HOW, Decoding
from vidlang.serve import bulk_work
from vidlang.serve.bulk_captions import narrate
from vidlang.serve.caption_lines import CaptionLines
from vidlang.serve.captions import Caption, Captioner
from vidlang.serve.own_videos import Parts, find_videos, own_videos
from vidlang.train import build
from vidlang.train.extract import Part

RUN = flags.DEFINE(cli.PATH, "run", None, "A run, a stage folder of it, or one checkpoint.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
VIDEO = flags.DEFINE(cli.PATH, "video", None, "A video file, or a folder of them.")
DATA = flags.DEFINE_string("data", None, "Clips to narrate, as a config's data section, in place of --video.")
SEGMENTS = flags.DEFINE_integer("segments", 1, "Equal parts of each video, with a sentence each.")
SECONDS = flags.DEFINE_float("segment_seconds", 0.0, "Seconds of a part, in place of --segments.")
CLIP = flags.DEFINE_string("clip", "{}", "How clips are looked at: times, crop, frames, as in a config.")
DIALS = flags.DEFINE_string("dials", "{}", "Dials of the video encoder, as in a config.")
PROMPT = flags.DEFINE_string(
    "prompt", None, "What sentences go on from; columns of the table stand in braces. As in training if not given."
)
DECODE_HOW = flags.DEFINE_enum("how", "greedy", list(HOW), "How tokens are chosen.")
MAX_NEW = flags.DEFINE_integer(
    "max_new", None, "Most tokens of a sentence; 32, or what there is room for, if not given."
)
SAMPLES = flags.DEFINE_integer("samples", 1, "Sentences of each clip: drawn ones, or the best beams.")
BEAMS = flags.DEFINE_integer("beams", 4, "Beams of --how=beam.")
TOP_P = flags.DEFINE_float("top_p", 0.95, "Share of the chances that --how=nucleus draws from.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of --how=nucleus: below 1 is more certain.")
SEED = flags.DEFINE_integer("seed", 0, "Of what --how=nucleus draws.")
OUT = flags.DEFINE(
    cli.PATH,
    "out",
    None,
    "What to write, or to go on with: a file of JSON lines, whose name ends with .jsonl or .json; else, with --data, a "
    "folder of Parquet files.",
)
CHECK = flags.DEFINE_bool("check", False, "Caption nothing: look into the files of --out=FOLDER and say what is there.")
COLUMNS = flags.DEFINE_list("columns", [], "Columns to keep in --out=FOLDER, besides video, start, end and id.")
SHARD = flags.DEFINE_integer(
    "shard_rows", 2048, "Clips of a file of --out=FOLDER: what is lost at most when a run is killed.", 1
)
BROKEN = flags.DEFINE_float(
    "max_broken_share", 0.05, "With --out=FOLDER, more unreadable clips than this are an error at the end."
)
PART = flags.DEFINE_string("part", "0/1", "Which share of --data is narrated here: i/n, from 0/n to n-1/n.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Clips at a time, in all JAX processes together.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that decode; -1: as many as the cores are good for.")
# Flags that mean something only beside another one.
ONLY = {"beams": "beam", "top_p": "nucleus", "temperature": "nucleus", "seed": "nucleus"}
OF_FOLDERS = ("check", "columns", "shard_rows", "max_broken_share")
LINES = (".jsonl", ".json")


def main(argv: list[str]) -> None:
    """Captions and prints, or writes; or says what was written."""
    del argv
    if folder := _is_folder(OUT.value):
        if CHECK.value:
            print(*require_complete(str(OUT.value), CAPTIONS), "complete", sep="\n")
            return
    elif wrong := [name for name in OF_FOLDERS if flags.FLAGS[name].present]:
        raise ValueError(f"--{wrong[0]} is for --out=FOLDER, a folder of Parquet files; leave it out, or give that")
    parts, part, videos = _check(folder)
    options = {
        "run": RUN.value,
        "step": STEP.value,
        "prompt": PROMPT.value,
        "decoding": _decoding(),
        "clip": cli.section("clip", CLIP.value),
        "dials": cli.section("dials", DIALS.value),
        "batch_size": BATCH.value,
        "workers": WORKERS.value,
    }
    cluster.join()
    if folder:
        speaker = _narrate(part, options)
    elif jax.process_count() > 1:
        raise ValueError("several JAX processes make one folder together: give --data and --out=FOLDER, or start one")
    else:
        speaker = _speak(parts, part, videos, options)
    if speaker.timing.clips and jax.process_index() == 0:
        print(speaker.timing)


def _is_folder(out: str | None) -> bool:
    """Whether it is, or will be, a folder of Parquet files, and not a file of JSON lines."""
    if out is None or out.lower().endswith(LINES):
        if out is not None and os.path.isdir(out):
            raise ValueError(f"--out={out} is called like a file of JSON lines and is a folder; give another name")
        return False
    if os.path.isfile(out):
        raise ValueError(
            f"--out={out} is a file: give a folder, or a file of JSON lines with a name like captions.jsonl"
        )
    ending = os.path.splitext(out)[1][1:]
    if ending.isalpha() and not os.path.isdir(out):
        raise ValueError(
            f"--out={out} is called like a file, and not one of JSON lines: give FILE.jsonl, or {out}/ for a folder of "
            "Parquet files"
        )
    return True


def _check(folder: bool) -> tuple[Parts, Part, list[Input]]:
    """What can be known to be wrong before a model is read."""
    if RUN.value is None:
        raise ValueError("give --run with the captioner, or --check with --out=FOLDER to look at what is there")
    if (VIDEO.value is None) == (DATA.value is None):
        raise ValueError("give --video=FILE or --video=FOLDER, or else --data with the clips to narrate")
    own, other = ("data", "video") if VIDEO.value is None else ("video", "data")
    given = [name for name in ("part", "segments", "segment_seconds") if flags.FLAGS[name].present]
    if wrong := [name for name in given if (name == "part") == (own == "video")]:
        raise ValueError(f"--{wrong[0]} is for --{other}; leave it out, or give that")
    if wrong := [name for name, how in ONLY.items() if flags.FLAGS[name].present and how != DECODE_HOW.value]:
        raise ValueError(f"--{wrong[0]} is for --how={ONLY[wrong[0]]}; leave it out, or give that")
    if own == "data" and OUT.value is None:
        raise ValueError("narrating a table takes --out, where the captions go: FILE.jsonl, or a folder")
    if own == "video" and folder:
        raise ValueError(f"--out={OUT.value} is a folder, which is for --data; with --video give a FILE.jsonl")
    call(Decoding, _decoding(), what="decoding")
    parts, part = Parts(SEGMENTS.value, SECONDS.value), Part.read(PART.value)
    return parts, part, [] if VIDEO.value is None else find_videos(VIDEO.value)


def _narrate(part: Part, options: Mapping[str, Any]) -> Captioner:
    """Makes what a folder lacks of this part."""
    table = build.table(cli.section("data", str(DATA.value)), "--data")
    speaker = Captioner(**options, max_broken_share=BROKEN.value)
    shown = cli.ClipProgress()

    def progress(told: bulk_work.Progress) -> None:
        if jax.process_index() == 0:
            shown(told.done, told.total)

    how: dict[str, Any] = {"columns": COLUMNS.value, "shard_rows": SHARD.value, "part": part, "progress": progress}
    told = narrate(speaker, table, str(OUT.value), **how)
    if jax.process_index() == 0:
        print(f"{OUT.value}: {told if told.done else 'all that this part has to make is there'}")
        print(*told.standing, sep="\n")
    return speaker


def _speak(parts: Parts, part: Part, videos: list[Input], options: Mapping[str, Any]) -> Captioner:
    """Prints what is said of videos, or writes JSON lines."""
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(CaptionLines(OUT.value, SAMPLES.value)) if OUT.value is not None else None
        speaker = Captioner(**options)
        if DATA.value is not None:
            tables = [build.table(cli.section("data", DATA.value), "--data")]
        else:
            short_side = max(288, *np.atleast_1d(speaker.spec.size).tolist())
            how: dict[str, Any] = {"short_side": short_side, "workers": max(1, WORKERS.value), "progress": _Cutting()}
            own = stack.enter_context(own_videos(videos, parts, **how))
            for name, why in own.refused:
                print(f"left out: {name}: {why}", flush=True)
            tables = list(own.tables)
        for table in tables:
            _caption(speaker, table, part, lines)
    return speaker


def _decoding() -> dict[str, Any]:
    values = {"beams": BEAMS.value, "top_p": TOP_P.value, "temperature": TEMPERATURE.value, "seed": SEED.value}
    found: dict[str, Any] = {"how": DECODE_HOW.value, "samples": SAMPLES.value}
    found |= {} if MAX_NEW.value is None else {"max_new": MAX_NEW.value}
    return found | {name: value for name, value in values.items() if ONLY[name] == DECODE_HOW.value}


def _caption(speaker: Captioner, table: ClipTable, part: Part, lines: CaptionLines | None) -> None:
    """Captions what is not there yet."""
    speaker.prompt.check(table)
    rows = range(part.number, len(table), part.count)
    if lines is not None:
        lacking = lines.lacking(table, rows, speaker.prompt)
        if there := len(rows) - len(lacking):
            print(f"{lines.path}: {there} of {len(rows)} clips are there and not made again", flush=True)
        rows = lacking.tolist()
    progress = cli.ClipProgress()
    for done, captions in enumerate(speaker.clips(table, rows), start=1):
        if lines is not None:
            lines.add(captions)
        if DATA.value is None:
            _show(captions)
        else:
            progress(done, len(rows))


def _show(captions: list[Caption]) -> None:
    for each in captions:
        print(f"{each.video}  {each.start:.1f} to {each.end:.1f} s  {each.caption}  ({each.score:.2f})", flush=True)


class _Cutting:
    """Says of files that have to be cut first that this is so, and every few seconds how far it is."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, progress: Progress) -> None:
        if not self._shown:
            print(f"cutting {progress.videos} file(s) first that are no H.264 MP4", flush=True)
        if progress.finished or time.monotonic() - self._shown >= cli.LINE_SECONDS:
            self._shown = time.monotonic()
            print(progress.line(), flush=True)


if __name__ == "__main__":
    with cluster.leaving():
        cli.run(main)
