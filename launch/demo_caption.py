"""The demo's second half: a captioner on the demo's encoder. `make demo-caption` runs this, and the demo where needed.

python -m launch.demo_caption --config=configs/demo_caption.py --workdir=runs/demo_caption --encoder=runs/demo
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import cli
from vidlang.serve.demo_caption import closing_words, run_demo_caption
from vidlang.train.run_files import METRICS

DEFAULT = cli.ROOT / "configs" / "demo_caption.py"
CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Recipe; configs/demo_caption.py if not given.", lock_config=True
)
WORKDIR = flags.DEFINE(cli.PATH, "workdir", "runs/demo_caption", "Folder of the run; continued if it exists.")
ENCODER = flags.DEFINE(cli.PATH, "encoder", "runs/demo", "Finished run whose video encoder it starts from.")


def main(argv: list[str]) -> None:
    """Runs it and says what to look at."""
    del argv
    if not (Path(ENCODER.value) / METRICS).is_file():
        raise ValueError(f"{ENCODER.value} is no finished run; run `make demo` first, or name another as --encoder")
    print(closing_words(run_demo_caption(CONFIG.value, WORKDIR.value, ENCODER.value), WORKDIR.value))


if __name__ == "__main__":
    cli.run(main, default_config=DEFAULT)
