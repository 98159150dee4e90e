"""Writes one HTML page about a run, finished or running: costs, curves, evaluations and pruned clips of each stage.

    python -m launch.report --workdir=runs/svitt
    python -m launch.report --workdir=runs/svitt --output=/tmp/svitt.html --clip=3

The page loads nothing, so it can be sent around. It needs no GPU: of each stage that prunes, one clip is encoded.
"""

from absl import flags

from launch import cli
from vidlang.serve.run_report import write_run_report

WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "Folder of the run.", required=True)
OUTPUT = flags.DEFINE(cli.PATH, "output", None, "The page. Default: report.html in the run's folder.")
CLIP = flags.DEFINE_integer("clip", 0, "Which clip of a stage's first evaluation shows what is pruned.", 0)


def main(argv: list[str]) -> None:
    """Writes, and says where."""
    del argv
    print(write_run_report(WORKDIR.value, OUTPUT.value, clip=CLIP.value))


if __name__ == "__main__":
    cli.run(main)
