"""Embeds all clips of a table, of any size: Parquet files with the clips' names and a vector each (docs/bulk.md).

    python -m launch.embed --run=runs/adavid --out=embeddings/ego4d --columns=narration_id \\
        --data="{'name': 'egoclip', 'split': 'train', 'root': 'data/ego4d', 'store': 'data/ego4d/store'}"
    python -m launch.embed --run=runs/adavid --out=embeddings/ego4d --what=videos,texts --part=0/8 --data=...
    python -m launch.embed --out=embeddings/ego4d --check

What was made stays: a run that was killed goes on when the same command is given again. --part=0/8 to --part=7/8 share
the work among processes that know nothing of each other; several JAX processes (docs/clusters.md) share each batch.
--check looks into every file and says what is there. Exit code 2 with a sentence where something is missing or wrong.
"""

import jax
from absl import flags

from launch import cli
from vidlang.core import cluster
from vidlang.data.bulk_store import DTYPES, EMBEDDINGS, require_complete
from vidlang.serve.bulk import Look, embed
from vidlang.serve.bulk_work import Progress
from vidlang.train import build
from vidlang.train.extract import Part

RUN = flags.DEFINE(cli.PATH, "run", None, "A run, a stage folder or checkpoint of it, or a portable folder.")
FAMILY = flags.DEFINE_string("family", None, "Where --run is files of a published model: what reads them, as clip.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
DATA = flags.DEFINE_string("data", None, "The clips, as a config's data section.")
OUT = flags.DEFINE(cli.PATH, "out", None, "Folder of the files; made, or continued if there.", required=True)
CHECK = flags.DEFINE_bool("check", False, "Embed nothing: look into the files of --out and say what is there.")
WHAT = flags.DEFINE_list("what", ["videos"], "videos, texts or both.")
COLUMNS = flags.DEFINE_list("columns", [], "Columns of the table to keep, besides video, start, end and id.")
CLIP = flags.DEFINE_string("clip", "{}", "How clips are looked at: frames, size, pixels, times, crop, as in a config.")
DIALS = flags.DEFINE_string("dials", "{}", "Dials of the video encoder, as in a config.")
DTYPE = flags.DEFINE_enum("dtype", "float16", list(DTYPES), "What embeddings are kept as.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Clips at a time, in all JAX processes together.", 1)
SHARD = flags.DEFINE_integer("shard_rows", 16384, "Clips of a file: what is lost at most when a run is killed.", 1)
PART = flags.DEFINE_string("part", "0/1", "Which share of the files is made here: i/n, from 0/n to n-1/n.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that decode; -1: as many as the cores are good for.")
BROKEN = flags.DEFINE_float("max_broken_share", 0.05, "More unreadable clips than this are an error at the end.")


def main(argv: list[str]) -> None:
    """Embeds, and says what was made and what there is; or only the latter."""
    del argv
    if CHECK.value:
        print(*require_complete(OUT.value, EMBEDDINGS), "complete", sep="\n")
        return
    if RUN.value is None or DATA.value is None:
        raise ValueError("give --run with the model and --data with the clips to embed; or --check to look at --out")
    part, section = Part.read(PART.value), cli.section("data", DATA.value)
    clip, dials = cli.section("clip", CLIP.value), cli.section("dials", DIALS.value)
    cluster.join()
    shown = cli.ClipProgress()

    def progress(told: Progress) -> None:
        if jax.process_index() == 0:
            shown(told.done, told.total)

    look = Look(clip, dials, DTYPE.value, BATCH.value, WORKERS.value, BROKEN.value)
    told = embed(
        RUN.value,
        build.table(section, "--data"),
        OUT.value,
        what=WHAT.value,
        look=look,
        columns=COLUMNS.value,
        shard_rows=SHARD.value,
        part=part,
        step=STEP.value,
        family=FAMILY.value,
        progress=progress,
    )
    if jax.process_index() == 0:
        made = told.done or told.sentences
        print(f"{OUT.value}: {told}" if made else f"{OUT.value}: all that this part has to make is there")
        print(*told.standing, sep="\n")


if __name__ == "__main__":
    with cluster.leaving():
        cli.run(main)
