"""Go on with a training that was stopped, from its folder alone: a finished one prints its metrics.

python examples/resume.py runs/demo
"""

import sys

from vidlang.train.run_files import read_config
from vidlang.train.stages import train


def main(run: str) -> None:
    """Trains what is left, from the newest checkpoint on, to the bits that an unbroken run gives."""
    for name, value in train(read_config(run), run).items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
