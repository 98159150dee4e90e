"""The whole journey on the embedded corpus: train, evaluate, report. `make demo` runs this.

python -m launch.demo --config=configs/demo.py --workdir=runs/demo
"""

from absl import flags
from ml_collections import config_flags

from launch import cli
from vidlang.serve.demo import closing_words, run_demo

CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "Recipe of the demo.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the run; continued if it exists.")


def main(argv: list[str]) -> None:
    """Runs the demo and says what to look at."""
    del argv
    metrics = run_demo(CONFIG.value, WORKDIR.value)
    print(closing_words(metrics, WORKDIR.value, config_flags.get_config_filename(flags.FLAGS["config"])))


if __name__ == "__main__":
    cli.run(main)
