"""Draws the pictures of docs/dials.md again.

python -m launch.figures
python -m launch.figures --workdir=runs/dials      # also the frames of a held-out clip, and what pruning leaves of them
"""

from absl import flags

from launch import cli
from vidlang.serve import dial_figures

WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "A run whose model has a cls token and whose dials prune.")
OUTPUT = flags.DEFINE(cli.PATH, "output", "docs/figures", "Folder for the pictures.")
CLIP = flags.DEFINE_integer("clip", 0, "Which clip of the first evaluation.")


def main(argv: list[str]) -> None:
    """Draws, and says what was written."""
    del argv
    pruned = None if WORKDIR.value is None else dial_figures.pruned_clip(WORKDIR.value, CLIP.value).picture
    for path in dial_figures.write(OUTPUT.value, pruned):
        print(path)


if __name__ == "__main__":
    cli.run(main)
