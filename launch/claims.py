"""Tests the papers' claims in small, and writes what held: claims.json and report.html (docs/claims.md).

    python -m launch.claims --workdir=runs/claims                     # all, three seeds: `make claims`
    python -m launch.claims --workdir=runs/claims_quick --quick       # ten minutes, one seed, fewer steps
    python -m launch.claims --workdir=runs/claims --only='masking|short_to_long' --seeds=5

Trainings that several claims need are run once, and a killed one goes on where it was when the same command is given
again. A claim that does not hold is a result, not an error: the exit code is 0.
"""

import os
from pathlib import Path

import jax
from absl import flags

from launch import cli
from vidlang.serve.claims.recipes import QUICK_SCALE, Scale
from vidlang.serve.claims.run import CLAIMS, REPORT, run_claims, table

WORKDIR = flags.DEFINE(cli.PATH, "workdir", "runs/claims", "Folder of the trainings and the report; gone on with.")
DATA = flags.DEFINE(cli.PATH, "data", "data/claims", "Folder of the embedded corpus; made if it is not there.")
QUICK = flags.DEFINE_bool("quick", False, "Fewer steps, and one seed unless --seeds says more.")
ONLY = flags.DEFINE_string("only", "", "Claims to test: a pattern of names, or a number.")
SEEDS = flags.DEFINE_integer("seeds", None, "Seeds of each training. Default: 3, of --quick 1.")


def main(argv: list[str]) -> None:
    """Runs the claims and prints a line for each."""
    del argv
    keep_programs(Path(WORKDIR.value) / "compiled")
    scale = (QUICK_SCALE if QUICK.value else Scale()).at(DATA.value)
    seeds = SEEDS.value if SEEDS.value is not None else 1 if QUICK.value else 3
    report = run_claims(WORKDIR.value, scale=scale, seeds=seeds, only=ONLY.value)
    print(f"\n{table(report)}\n\nLook at {WORKDIR.value}/{REPORT}; all figures are in {WORKDIR.value}/{CLAIMS}.")


def keep_programs(folder: Path) -> None:
    """Seeds of a training share their programs: compiled once, they are read from disk after that."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    cli.run(main)
