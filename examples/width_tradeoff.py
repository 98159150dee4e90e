"""What a model that was trained with adaptive width reaches at each width, and what a clip costs there.

python examples/width_tradeoff.py runs/dials d-768 d-576 d-384 d-192
"""

import sys

from vidlang.serve.sweep import sweep


def main(run: str, *presets: str) -> None:
    """Prints a line for each width and evaluation: operations of a clip, and the first of the metrics."""
    for point in sweep(run, presets or ("d-768", "d-576", "d-384", "d-192")):
        name, value = next(iter(point.metrics.items()))
        print(f"{point.preset:<8} {point.flops['true'] / 1e9:8.3g} GFLOP a clip   {name} {value:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
