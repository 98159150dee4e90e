"""The whole journey on the embedded corpus: train, evaluate, report. `make demo` runs this.

python -m launch.demo --config=configs/demo.py --workdir=runs/demo
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import cli
from vidlang.serve.demo import closing_words, run_demo

DEFAULT = cli.ROOT / "configs" / "demo.py"
CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Recipe of the demo; configs/demo.py if not given.", lock_config=True
)
WORKDIR = flags.DEFINE(cli.PATH, "workdir", "runs/demo", "Folder of the run; continued if it exists.")


def main(argv: list[str]) -> None:
    """Runs the demo and says what to look at."""
    del argv
    metrics = run_demo(CONFIG.value, WORKDIR.value)
    print(closing_words(metrics, WORKDIR.value, shown(config_flags.get_config_filename(flags.FLAGS["config"]))))


def shown(path: str) -> str:
    """A path as one would type it here: relative when it is inside the current folder."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


if __name__ == "__main__":
    cli.run(main, default_config=DEFAULT)
