"""From one way of keeping a model to another: a run, a portable folder, the files of a published model.

    python -m launch.convert --from=run --path=runs/demo --to=portable --out=models/demo
    python -m launch.convert --from=run --path=runs/dials --to=portable --widths=d-384 --out=models/dials_half
    python -m launch.convert --from=clip --path=weights/clip --to=portable --out=models/clip

A portable folder holds all that vidlang.load needs (docs/load.md). With --widths the small model is cut out that the
large one is there. Exit code 2 with a sentence where it cannot be done.
"""

from pathlib import Path

from absl import flags

import vidlang
from launch import cli
from vidlang.core.config import did_you_mean, extension_names
from vidlang.serve.portable import save_portable

RUN, PORTABLE = "run", "portable"
FROM = flags.DEFINE_string("from", None, "What is there: run, portable, or the family that reads it.", required=True)
PATH = flags.DEFINE(cli.PATH, "path", None, "Where it lies: a folder, or a file of weights.", required=True)
TO = flags.DEFINE_string("to", PORTABLE, "What is written.")
OUT = flags.DEFINE(cli.PATH, "out", None, "Folder to write.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; the newest if not given.")
WIDTHS = flags.DEFINE_string("widths", None, "Preset of widths to cut the model to, as in d-384.")
TOKENIZER = flags.DEFINE(cli.PATH, "tokenizer", None, "Tokenizer file or folder, if not where the files say.")


def main(argv: list[str]) -> None:
    """Reads, writes, and says what was written."""
    del argv
    _check()
    family = None if FROM.value in (RUN, PORTABLE) else FROM.value
    model = vidlang.load(PATH.value, family=family, step=STEP.value, widths=WIDTHS.value, tokenizer=TOKENIZER.value)
    folder = save_portable(model, OUT.value)
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(f"{OUT.value}: {model!r}, {size / 1e6:.1f} MB")


def _check() -> None:
    """What is asked for is there."""
    known = {"from": (RUN, PORTABLE, *extension_names("pretrained")), "to": (PORTABLE,)}
    for name, value in (("from", FROM.value), ("to", TO.value)):
        if value not in known[name]:
            hint = did_you_mean(value, known[name])
            raise ValueError(f"--{name} is {value!r}{hint}; it is one of {', '.join(known[name])}")


if __name__ == "__main__":
    cli.run(main)
