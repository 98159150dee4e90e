r"""A trained model, cut at a width, in files that run without vidlang.

    python -m launch.export --run=runs/demo --out=exported/demo
    python -m launch.export --run=runs/adavid --width=768,384,192 --format=onnx --out=exported/adavid --time
    python -m launch.export --run=runs/adavid --width=d-dec --format=stablehlo --platforms=cpu,tpu --out=exported/dec

A dual encoder becomes embed_video and embed_text, a classifier classify; several widths become a folder each. Beside
the files lie export.json, which says how they are called, and the tokenizer (docs/export.md). Exit code 2 with a
sentence where it cannot be done.
"""

from pathlib import Path
from typing import Any

from absl import flags

from launch import cli
from vidlang.serve.export import onnx_file, stablehlo
from vidlang.serve.export.folder import FORMATS, FULL, How, export_run
from vidlang.serve.export.latency import measure
from vidlang.serve.export.program import DTYPES

RUN = flags.DEFINE(cli.PATH, "run", None, "A run, a stage folder of it, or one checkpoint.", required=True)
OUT = flags.DEFINE(cli.PATH, "out", None, "Folder to write.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if not given.")
WIDTHS = flags.DEFINE_list("width", [FULL], f"Widths to cut the model at: {FULL!r}, numbers, or names of presets.")
FORMAT = flags.DEFINE_enum("format", FORMATS[0], list(FORMATS), "Kind of file.")
DTYPE = flags.DEFINE_enum("dtype", DTYPES[0], list(DTYPES), "What StableHLO computes in.")
PLATFORMS = flags.DEFINE_list("platforms", list(stablehlo.PLATFORMS), "Where StableHLO shall run.")
DIALS = flags.DEFINE_string("dials", "{}", "Dials of the video encoder, as in a config; widths have a flag.")
WEIGHTS = flags.DEFINE_enum("weights", onnx_file.WEIGHTS[0], list(onnx_file.WEIGHTS), "What ONNX files hold.")
CHECK = flags.DEFINE_bool("check", True, "Compare what the files answer with what the model does.")
TIME = flags.DEFINE_bool("time", False, "Measure how long one clip or text takes here; ONNX on the CPU.")


def main(argv: list[str]) -> None:
    """Exports, and prints what became how large."""
    del argv
    for name, format in (("dtype", "stablehlo"), ("platforms", "stablehlo"), ("weights", "onnx")):
        if flags.FLAGS[name].present and FORMAT.value != format:
            raise ValueError(f"--{name} is for --format={format}; leave it out, or give that")
    if not WIDTHS.value or len(set(WIDTHS.value)) < len(WIDTHS.value):
        raise ValueError(f"--width names each width once, as in --width=full,384; found {','.join(WIDTHS.value)!r}")
    how = How(FORMAT.value, DTYPE.value, tuple(PLATFORMS.value), CHECK.value, WEIGHTS.value)
    cards = export_run(
        RUN.value, OUT.value, widths=WIDTHS.value, step=STEP.value, dials=cli.section("dials", DIALS.value), how=how
    )
    print(f"{'width':<10}{'parameters':>13}  {'method':<12}{'bytes':>13}{'milliseconds' if TIME.value else '':>14}")
    for card in cards:
        folder = Path(OUT.value) / card["width"] if len(cards) > 1 else Path(OUT.value)
        for line in _lines(card, folder):
            print(line, flush=True)


def _lines(card: dict[str, Any], folder: Path) -> list[str]:
    lines = []
    for name, method in card["methods"].items():
        took = f"{1e3 * measure(folder, card, name):>14.2f}" if TIME.value else ""
        lines.append(f"{card['width']:<10}{card['parameters']:>13,}  {name:<12}{method['bytes']:>13,}{took}")
    return lines


if __name__ == "__main__":
    cli.run(main)
