"""Trains a recipe, or goes on with it where it stopped.

    python -m launch.train --config=configs/demo.py --workdir=runs/demo
    python -m launch.train --config=configs/demo.py --workdir=runs/demo --config.stages[0].duration="10 steps"

    python -m launch.train --config=configs/demo.py --workdir=runs/demo --profile=100:105    # a trace of these steps
    python -m launch.train --config=configs/demo.py --workdir=runs/demo --replay=120         # only that step's batch

A mesh axis fsdp or tensor of size 0 is chosen: as small as fits the devices (docs/scale.md).
It is the same on one machine and on many: docs/clusters.md says how several processes are started and find each other.

Exit codes: 0 done, 2 a mistake in config, flags or data (one sentence says which), 128 + n stopped by signal n after
saving, 75 another process of the run was lost.
"""

import jax
from absl import flags
from ml_collections import config_flags

from launch import cli
from vidlang.core import cluster, xla
from vidlang.cost import collectives, fit
from vidlang.cost.mfu import ideal_seconds
from vidlang.train.evaluate import table
from vidlang.train.prepared import Extras
from vidlang.train.profiling import read_steps
from vidlang.train.recipe import read_recipe
from vidlang.train.replay import replay
from vidlang.train.stages import train

CONFIG = config_flags.DEFINE_config_file("config", help_string="Recipe to train.", lock_config=True)
WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "Folder of the run; made, or continued if there.", required=True)
PROFILE = flags.DEFINE_string("profile", None, "Write an XLA trace of these steps, as in 100:105, the last excluded.")
REPLAY = flags.DEFINE_string("replay", None, "Train nothing: write the batch of STEP or STAGE:STEP and name its clips.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Trains, and prints the last metrics; or draws one batch again."""
    del argv
    if REPLAY.value:
        print("\n".join(replay(read_recipe(CONFIG.value), WORKDIR.value, REPLAY.value)))
        return
    extras = Extras(read_steps(PROFILE.value) if PROFILE.value else None, ideal_seconds, collectives.in_words)
    xla.set_flags()
    cluster.join()
    told = fit.settle(CONFIG.value, jax.devices())
    if told and jax.process_index() == 0:
        print("\n".join(told), flush=True)
    metrics = train(CONFIG.value, WORKDIR.value, extras=extras)
    if jax.process_index() == 0:
        print(table(metrics))


if __name__ == "__main__":
    with cluster.leaving():
        cli.run(main)
