"""From one way of keeping a model to another: a run, a portable folder, the files of a published model.

    python -m launch.convert --from=run --path=runs/demo --to=portable --out=models/demo
    python -m launch.convert --from=run --path=runs/dials --to=portable --widths=d-384 --out=models/dials_half
    python -m launch.convert --from=clip --path=weights/clip --to=portable --out=models/clip
    python -m launch.convert --from=run --path=runs/mine --to=bert --part=text --out=published/words

A portable folder holds all that vidlang.load needs (docs/load.md); --to=FAMILY writes a folder that Hugging Face's
libraries read, of the whole model or of a part of it. With --widths the small model is cut out that the large one is
there. Exit code 2 with a sentence where it cannot be done.
"""

import tempfile
from pathlib import Path

import jax
from absl import flags

import vidlang
from launch import cli
from vidlang.core.config import did_you_mean, extension_names
from vidlang.pretrained._publish import publish, publishable
from vidlang.serve.loaded import Loaded
from vidlang.serve.portable import save_portable

RUN, PORTABLE = "run", "portable"
# Where the parameters of a part lie.
PARTS = {"video": "video_encoder", "text": "text_encoder", "language": "language"}
FROM = flags.DEFINE_string("from", None, "What is there: run, portable, or the family that reads it.", required=True)
PATH = flags.DEFINE(cli.PATH, "path", None, "Where it lies: a folder, or a file of weights.", required=True)
TO = flags.DEFINE_string("to", PORTABLE, "What is written.")
OUT = flags.DEFINE(cli.PATH, "out", None, "Folder to write.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; the newest if not given.")
PART = flags.DEFINE_enum("part", None, list(PARTS), "The part of the model that --to=FAMILY is of; all if not given.")
WIDTHS = flags.DEFINE_string("widths", None, "Preset of widths to cut the model to, as in d-384.")
TOKENIZER = flags.DEFINE(cli.PATH, "tokenizer", None, "Tokenizer file or folder, if not where the files say.")


def main(argv: list[str]) -> None:
    """Reads, writes, and says what was written."""
    del argv
    _check()
    family = None if FROM.value in (RUN, PORTABLE) else FROM.value
    model = vidlang.load(PATH.value, family=family, step=STEP.value, widths=WIDTHS.value, tokenizer=TOKENIZER.value)
    if TO.value == PORTABLE:
        folder = save_portable(model, OUT.value)
    else:
        folder = _publish(model)
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(f"{OUT.value}: {model!r}, {size / 1e6:.1f} MB")


def _publish(model: Loaded) -> Path:
    """Writes the folder of Hugging Face's libraries."""
    section, params, part = dict(model.about.model), jax.device_get(model.params), PART.value
    if part is not None:
        if part not in section or PARTS[part] not in params:
            there = ", ".join(name for name in PARTS if name in section) or "none"
            raise ValueError(f"the model {model.about.name!r} has no part {part!r}; it has: {there}")
        section, params = {part: section[part]}, {PARTS[part]: params[PARTS[part]]}
    video = model.about.structs(frames=model.about.clip.get("frames")).get("video_BTHWC")
    clip = None if video is None or part in ("text", "language") else tuple(video.shape[1:4])
    with tempfile.TemporaryDirectory(prefix="vidlang_") as folder:
        words = None
        if model.tokenizer is not None and part != "video":
            words = Path(folder) / "tokenizer.json"
            model.tokenizer.save(words)
        return publish(params, section, clip, OUT.value, TO.value, words)


def _check() -> None:
    """What is asked for is there."""
    known = {"from": (RUN, PORTABLE, *extension_names("pretrained")), "to": (PORTABLE, *publishable())}
    for name, value in (("from", FROM.value), ("to", TO.value)):
        if value not in known[name]:
            hint = did_you_mean(value, known[name])
            raise ValueError(f"--{name} is {value!r}{hint}; it is one of {', '.join(known[name])}")
    if PART.value is not None and TO.value == PORTABLE:
        raise ValueError("--part is for --to=FAMILY; a portable folder holds the whole model, leave it out")


if __name__ == "__main__":
    cli.run(main)
