"""Evaluates a run on its evaluations: its newest checkpoint, another step, or the model before any training.

python -m launch.evaluate --workdir=runs/demo
python -m launch.evaluate --workdir=runs/demo --step=300
python -m launch.evaluate --workdir=runs/demo --untrained
"""

import jax
from absl import flags

from launch import cli
from vidlang.core import cluster
from vidlang.train.evaluate import evaluate, table

WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "Folder of the run.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
UNTRAINED = flags.DEFINE_bool("untrained", False, "Take the parameters as they were before the first step.")


def main(argv: list[str]) -> None:
    """Evaluates, and prints the metrics."""
    del argv
    if UNTRAINED.value and STEP.value is not None:
        raise ValueError("--untrained and --step exclude each other; give one")
    cluster.join()
    metrics = evaluate(WORKDIR.value, step=STEP.value, untrained=UNTRAINED.value)
    if jax.process_index() == 0:
        print(table(metrics))


if __name__ == "__main__":
    with cluster.leaving():
        cli.run(main)
