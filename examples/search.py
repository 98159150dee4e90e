"""Search the clips a run was evaluated on with a sentence of your own.

.venv/bin/python examples/search.py runs/demo "a red circle slides left then a blue square spins"
"""

import sys

import numpy as np

from vidlang.serve.search import embed_evaluation


def main(workdir: str, query: str) -> None:
    """Prints the five clips that fit best, with their score, place and caption."""
    clips = embed_evaluation(workdir, queries=[query])
    scores = clips.video_NE @ clips.query_QE[0]
    for position in np.argsort(-scores)[:5]:
        clip = clips.table.row(int(clips.rows[position]))
        print(f"{scores[position]:.3f}  {clip['video']} {clip['start']:.1f}-{clip['end']:.1f} s  {clip['texts'][0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
