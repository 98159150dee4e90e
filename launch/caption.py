r"""What a trained captioner says about videos: your own files, or the clips of a table.

    python -m launch.caption --run=runs/demo_caption --video=my_video.mp4
    python -m launch.caption --run=runs/caption_long --video=films/ --segments=16 --how=beam --out=captions.jsonl
    python -m launch.caption --run=runs/caption_short --out=narrated.jsonl \
        --data="{'name': 'egoclip', 'split': 'train', 'root': 'data/ego4d', 'store': 'data/ego4d/store'}"

Files may be of any kind that FFmpeg reads, and stay as they are. --segments or --segment_seconds cut each into parts
with a sentence of their own. With --data a whole table is narrated; rows that --out has already are not made again, so
a killed command goes on when it is given again, and --part=0/4 to --part=3/4 share the work. What it writes can be
trained on: {'name': 'narrated', 'path': 'narrated.jsonl', ...} (docs/captioning.md). Exit code 2 with a sentence where
it cannot be done.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch import cli
from vidlang.data.clips import ClipTable
from vidlang.nn.generation import HOW
from vidlang.serve.captions import Caption, Captioner, known_rows, open_files
from vidlang.train import build
from vidlang.train.extract import Part

RUN = flags.DEFINE(cli.PATH, "run", None, "A run, a stage folder of it, or one checkpoint.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
VIDEO = flags.DEFINE(cli.PATH, "video", None, "A video file, or a folder of them.")
DATA = flags.DEFINE_string("data", None, "Clips to narrate, as a config's data section, in place of --video.")
SEGMENTS = flags.DEFINE_integer("segments", 1, "Equal parts of each video, with a sentence each.")
SECONDS = flags.DEFINE_float("segment_seconds", 0.0, "Seconds of a part, in place of --segments.")
CLIP = flags.DEFINE_string("clip", "{}", "How clips are looked at: times, crop, frames, as in a config.")
PROMPT = flags.DEFINE_string("prompt", "", "What the sentence goes on from; columns of the table stand in braces.")
DECODE_HOW = flags.DEFINE_enum("how", "greedy", list(HOW), "How tokens are chosen.")
MAX_NEW = flags.DEFINE_integer("max_new", 32, "Most tokens of a sentence.")
BEAMS = flags.DEFINE_integer("beams", 4, "Beams of --how=beam.")
TOP_P = flags.DEFINE_float("top_p", 0.95, "Share of the chances that --how=nucleus draws from.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of --how=nucleus: below 1 is more certain.")
SEED = flags.DEFINE_integer("seed", 0, "Of what --how=nucleus draws.")
OUT = flags.DEFINE(cli.PATH, "out", None, "File of JSON lines to write; with --data, gone on with.")
PART = flags.DEFINE_string("part", "0/1", "Which part of --data to narrate: i/n.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Clips at a time.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that decode clips; 0 for none beside this one.")


def main(argv: list[str]) -> None:
    """Captions and prints, or writes."""
    del argv
    if (VIDEO.value is None) == (DATA.value is None):
        raise ValueError("give --video=FILE or --video=FOLDER, or else --data with the clips to narrate")
    speaker = Captioner(
        RUN.value,
        step=STEP.value,
        prompt=PROMPT.value,
        decoding=_decoding(),
        clip=cli.section("clip", CLIP.value),
        batch_size=BATCH.value,
        workers=WORKERS.value,
    )
    if DATA.value is not None:
        _narrate(speaker, DATA.value)
        return
    files = open_files(VIDEO.value or "", segments=SEGMENTS.value, segment_seconds=SECONDS.value)
    for name, why in files.refused:
        print(f"left out: {name}: {why}", flush=True)
    with files.folder:
        _write(speaker(files.table), "w", show=True)
    print(speaker.timing)


def _decoding() -> dict[str, Any]:
    found: dict[str, Any] = {"how": DECODE_HOW.value, "max_new": MAX_NEW.value}
    if DECODE_HOW.value == "beam":
        found["beams"] = BEAMS.value
    if DECODE_HOW.value == "nucleus":
        found |= {"top_p": TOP_P.value, "temperature": TEMPERATURE.value, "seed": SEED.value}
    return found


def _narrate(speaker: Captioner, data: str) -> None:
    """Captions a table's clips that the file does not have yet."""
    if OUT.value is None:
        raise ValueError("narrating a table takes --out, the file of JSON lines that the captions go to")
    table: ClipTable = build.table(cli.section("data", data), "--data")
    part, path = Part.read(PART.value), Path(OUT.value)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    made = known_rows(lines, table)
    if lines and not lines[-1].endswith("}"):  # the last line was cut off
        kept = path.with_suffix(f"{path.suffix}.partial")
        kept.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
        os.replace(kept, path)
    rows = [row for row in range(part.number, len(table), part.count) if row not in made]
    if not rows:
        print(f"{path}: all that this part has to make is there")
        return
    print(f"{len(rows)} clips to narrate, {len(made)} are there", flush=True)
    _write(speaker(table.select(np.array(rows))), "a", show=False)
    print(f"{path}: {speaker.timing}")


def _write(captions: Iterator[Caption], mode: str, *, show: bool) -> None:
    file = None
    if OUT.value is not None:
        Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
        file = open(OUT.value, mode, encoding="utf-8")  # noqa: SIM115  # closed below, with or without an error
    try:
        for each in captions:
            if show:
                print(f"{each.video}  {each.start:7.1f} to {each.end:7.1f} s  {each.caption}", flush=True)
            if file is not None:
                file.write(each.line(PROMPT.value) + "\n")
                file.flush()
    finally:
        if file is not None:
            file.close()


if __name__ == "__main__":
    cli.run(main)
