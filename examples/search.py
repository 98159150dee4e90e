"""Search the clips that a run was evaluated on with a sentence of your own.

python examples/search.py runs/demo "a red circle slides left then a blue square spins"
"""

import sys

import numpy as np

import vidlang
from vidlang.serve.search import evaluation_clips


def main(run: str, query: str) -> None:
    """Prints the five clips that fit best, with their score, place and caption."""
    model, clips = vidlang.load(run), evaluation_clips(run)  # or clips = a list of video files
    score_N = model.similarity(clips, [query], progress=True)[:, 0]
    for row in np.argsort(-score_N)[:5].tolist():
        clip = clips.row(row)
        print(f"{score_N[row]:.3f}  {clip['video']} {clip['start']:.1f}-{clip['end']:.1f} s  {clip['texts'][0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
