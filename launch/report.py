"""Writes one HTML page about a run, finished or running, or about several: costs, curves, evaluations, configs.

    python -m launch.report --workdir=runs/svitt
    python -m launch.report --workdir=runs/svitt --output=/tmp/svitt.html --clip=3
    python -m launch.report runs/svitt runs/dense runs/wider --output=/tmp/three.html
    python -m launch.report --runs=runs/svitt,runs/dense

The page loads nothing, so it can be sent around. It needs no GPU: of each stage that prunes, one clip is encoded.
Several runs are compared: their curves over each other, what each reached and how fast, where their configs differ.
"""

import csv
import io
import itertools
import os
import sys

from absl import flags

from launch import cli
from vidlang.serve.compare import write_comparison
from vidlang.serve.run_report import write_run_report

WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "Folder of the run.")
RUNS = flags.DEFINE_list("runs", [], "Folders of several runs, to compare; also without the name, before all flags.")
OUTPUT = flags.DEFINE(
    cli.PATH, "output", None, "The page. Default: report.html in the run's folder, comparison.html in the first run's."
)
CLIP = flags.DEFINE_integer("clip", 0, "Which clip of a stage's first evaluation shows what is pruned.", 0)


def main(argv: list[str]) -> None:
    """Writes, and says where."""
    del argv
    runs, workdir = [os.path.expanduser(run) for run in RUNS.value], WORKDIR.value
    if bool(runs) == (workdir is not None):
        raise ValueError("give the run's folder as --workdir, or else those of several runs as --runs=RUN,RUN")
    runs = [workdir] if workdir is not None else runs
    if len(runs) > 1:
        if flags.FLAGS["clip"].present:
            raise ValueError("--clip is for the page about one run; leave it out")
        print(write_comparison(runs, OUTPUT.value))
    else:
        print(write_run_report(runs[0], OUTPUT.value, clip=CLIP.value))


def as_flags(arguments: list[str]) -> list[str]:
    """Folders that stand before all flags, as --runs."""
    folders = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    if not folders:
        return arguments
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(folders)
    return [f"--runs={line.getvalue()}", *arguments[len(folders) :]]


if __name__ == "__main__":
    sys.argv[1:] = as_flags(sys.argv[1:])
    cli.run(main)
