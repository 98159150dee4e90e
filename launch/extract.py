"""Runs a trained model over the clips of a table and keeps what it makes of them: the features of docs/features.md.

    python -m launch.extract --run=runs/adavid --out=features/summaries --width=d-768,d-384 \\
        --data="{'name': 'egosummary', 'split': 'train', 'root': 'data/ego4d', 'store': 'data/ego4d/store'}"
    python -m launch.extract --run=runs/svitt_ego --out=features/nlq --layout=windows --window="4 frames" \\
        --stride="4 frames" --name_column=clip --dtype=float32 --data="{'name': 'ego4d_nlq', 'split': 'train', ...}"

Each clip is cut into 16 segments of as many frames as the model was trained with, or each different clip into windows.
What was made stays: a run that was killed goes on when the same command is given again, other widths are added to the
same store, and --part=0/4 to --part=3/4 share the work among four processes or machines that know nothing of each
other; several JAX processes (docs/clusters.md) share it by themselves. Exit code 2 with a sentence where it cannot be
done.
"""

from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from launch import cli
from vidlang.core import cluster
from vidlang.data.features import cuts
from vidlang.data.features.writer import DTYPES
from vidlang.train import build
from vidlang.train.extract import Part, extract, stage_of, wait_for_others

RUN = flags.DEFINE(cli.PATH, "run", None, "A run, a stage folder of it, or one checkpoint.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
OUT = flags.DEFINE(cli.PATH, "out", None, "Folder of the store; made, or continued if there.", required=True)
DATA = flags.DEFINE_string("data", None, "The clips, as a config's data section. Default: those it was trained on.")
CLIP = flags.DEFINE_string("clip", "{}", "How clips are looked at: size, pixels, times, crop, as in a config.")
DIALS = flags.DEFINE_string("dials", "{}", "Dials of all variants, as in a config.")
WIDTHS = flags.DEFINE_list("width", [], "Presets of widths, as in d-768,d-384: a variant each, called like them.")
VARIANT = flags.DEFINE_string("variant", None, "What the variant is called, where there is one; full if not given.")
LAYOUT = flags.DEFINE_enum("layout", "segments", ["segments", "windows"], "How clips are cut.")
SEGMENTS = flags.DEFINE_integer("segments", 16, "Segments of a clip.")
FRAMES = flags.DEFINE_integer("frames", None, "Frames of a segment or window; as in training if not given.")
WINDOW = flags.DEFINE_string("window", None, "Length of a window: '16 frames' of the video, or '0.5 seconds'.")
STRIDE = flags.DEFINE_string("stride", None, "From one window to the next; a window if not given.")
NAME = flags.DEFINE_string("name_column", "video", "The column that windows' files are called by.")
DTYPE = flags.DEFINE_enum("dtype", "float16", list(DTYPES), "What features are kept as.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Clips at a time, each with all its segments.")
SHARD = flags.DEFINE_integer("shard_rows", 4096, "Clips of a file: what is lost at most when a run is killed.")
PART = flags.DEFINE_string("part", "0/1", "Which share of the work is done here: i/n, from 0/n to n-1/n.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that decode; -1: as many as the cores are good for.")


def main(argv: list[str]) -> None:
    """Extracts, and says how far it is."""
    del argv
    cluster.join()
    stage, progress = stage_of(RUN.value, STEP.value), cli.ClipProgress()
    table = build.table(stage.data if DATA.value is None else cli.section("data", DATA.value), "data")
    report = extract(
        RUN.value,
        _cut(table),
        OUT.value,
        variants=_variants(),
        frames=stage.clip.get("frames", 1) if FRAMES.value is None else FRAMES.value,
        clip=cli.section("clip", CLIP.value),
        batch_size=BATCH.value,
        dtype=DTYPE.value,
        part=Part.read(PART.value),
        workers=WORKERS.value,
        step=STEP.value,
        progress=lambda report: progress(report.done, report.total),
    )
    wait_for_others(OUT.value)
    broken = f", {report.broken} of which could not be read and are NaN" if report.broken else ""
    nothing = "all that this part has to make is there"
    who = f" by process {jax.process_index()}" if jax.process_count() > 1 else ""
    print(f"{OUT.value}: {report.done} clips encoded{who}{broken}" if report.total else f"{OUT.value}: {nothing}{who}")


def _cut(table: Any) -> cuts.Cuts:
    if LAYOUT.value == "segments":
        if WINDOW.value or STRIDE.value:
            raise ValueError("--window and --stride are for --layout=windows")
        return cuts.segments(table, count=SEGMENTS.value, shard_rows=SHARD.value)
    if not WINDOW.value:
        raise ValueError("--layout=windows needs --window, as in --window='16 frames'")
    return cuts.windows(table, window=WINDOW.value, stride=STRIDE.value or WINDOW.value, name_column=NAME.value)


def _variants() -> dict[str, Mapping[str, Any]]:
    """The dials of each variant, by its name."""
    dials, widths = cli.section("dials", DIALS.value), WIDTHS.value
    if VARIANT.value is not None and len(widths) > 1:
        raise ValueError(f"--variant names one variant, and --width gives {len(widths)}; leave it out")
    if not widths:
        return {VARIANT.value or "full": dials}
    return {VARIANT.value or width: {**dials, "widths": width} for width in widths}


if __name__ == "__main__":
    with cluster.leaving():
        cli.run(main)
